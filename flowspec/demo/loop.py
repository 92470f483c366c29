"""The training loop, the same for target and draft: batches in, checkpoints and progress lines out.

It refuses to know what the loss is and where the final weights go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowspec.demo.data import Cursor, WindowStream
from flowspec.demo.losses import Loss, mean_loss
from flowspec.demo.optimizer import Optimizers
from flowspec.demo.schedule import Schedule
from flowspec.demo.storage import load_checkpoint, save_checkpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run proceeds, apart from what it learns."""

    schedule: Schedule
    checkpoint: Path
    batch: int = 16
    length: int = 512
    long_length: int = 2048
    long_share: float = 0.15
    """The share of the time, at the end, spent on long windows (with as many tokens per batch)."""
    checkpoint_seconds: float = 180.0
    evaluate_seconds: float = 300.0
    print_steps: int = 10


@dataclass(slots=True)
class Totals:
    """What a run has done so far, over all its resumptions."""

    steps: int = 0
    tokens: int = 0


class Trainer:
    """Trains ``model`` on ``stream`` until the plan's schedule is over, resuming from the plan's checkpoint."""

    def __init__(
        self,
        model: Any,
        loss: Loss,
        stream: WindowStream,
        plan: Plan,
        step_loss: Callable[..., Any] | None = None,
        before: Totals | None = None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._step_loss = step_loss or loss
        self._stream = stream
        self._plan = plan
        self._optimizers = Optimizers(model)
        self._device = next(model.parameters()).device
        self._begun = before or Totals()
        self.totals = replace(self._begun)
        self._resume()

    def run(self, validation: torch.Tensor) -> Totals:
        """Train to the end, then store a last checkpoint."""
        plan = self._plan
        saved = evaluated = reported = time.time()
        recent: list[float] = []
        self._model.train()
        while not plan.schedule.is_over(self.totals.steps, now := time.time()):
            recent.append(self._step(now))
            if len(recent) == plan.print_steps:
                self._print(recent, time.time() - reported)
                recent, reported = [], time.time()
            if time.time() - evaluated > plan.evaluate_seconds:
                self.evaluate(validation)
                evaluated = time.time()
            if time.time() - saved > plan.checkpoint_seconds:
                self._save()
                saved = time.time()
        self._save()
        self.evaluate(validation)
        return self.totals

    def evaluate(self, validation: torch.Tensor) -> float:
        """The validation loss, printed."""
        loss = mean_loss(self._loss, validation, self._device)
        print(f"step {self.totals.steps} validation {loss:.4f}", flush=True)
        return loss

    def _step(self, now: float) -> float:
        plan = self._plan
        count, length = plan.batch, plan.length
        if plan.schedule.progress(now) > 1 - plan.long_share:
            count, length = max(1, plan.batch * plan.length // plan.long_length), plan.long_length
        windows = self._stream.next_batch(count, length).to(self._device)
        loss = self._step_loss(windows)
        loss.backward()
        self._optimizers.step(self._factor(now))
        self.totals.steps += 1
        self.totals.tokens += count * length
        return float(loss.item())

    def _factor(self, now: float) -> float:
        """The rates' factor; fresh optimizers warm up, also on a model that was trained before."""
        return self._plan.schedule.factor(self.totals.steps - self._begun.steps, now)

    def _print(self, recent: list[float], seconds: float) -> None:
        plan = self._plan
        now = time.time()
        rate = len(recent) * plan.batch * plan.length / seconds
        left = (plan.schedule.deadline - now) / 60
        print(
            f"step {self.totals.steps} loss {sum(recent) / len(recent):.4f} tokens {self.totals.tokens / 1e6:.2f}M "
            f"{rate:.0f} tokens/s rate x{self._factor(now):.2f} {left:.1f} min left",
            flush=True,
        )

    def _save(self) -> None:
        cursor = self._stream.cursor
        state = {
            "model": self._model.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "cursor": [cursor.epoch, cursor.window],
            "totals": [self.totals.steps, self.totals.tokens],
        }
        save_checkpoint(self._plan.checkpoint, state)

    def _resume(self) -> None:
        state = load_checkpoint(self._plan.checkpoint)
        if state is None:
            return
        self._model.load_state_dict(state["model"])
        self._optimizers.load_state_dict(state["optimizers"])
        self._stream.cursor = Cursor(*state["cursor"])
        self.totals = Totals(*state["totals"])
        print(f"resumed at step {self.totals.steps}", flush=True)
