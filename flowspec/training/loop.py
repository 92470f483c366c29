"""The training loop, whatever is trained: batches in, checkpoints and progress out.

It refuses to know what the loss is and where the final weights go.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.errors import ConfigurationError, FlowspecError
from flowspec.training.optimizer import Optimizers
from flowspec.training.progress import Progress, Reporter
from flowspec.training.schedule import Schedule
from flowspec.training.storage import load_checkpoint, save_checkpoint
from flowspec.training.windows import Cursor, WindowStream

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Windows (count, length + 1) of int64 on the device -> a scalar: the mean over the windows, in nats."""

RECENT: Final = 20
"""Steps that a shown loss and speed are means of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run proceeds, apart from what it learns."""

    schedule: Schedule
    checkpoint: Path
    batch: int = 16
    length: int = 512
    long_length: int = 2048
    long_share: float = 0.15
    """The share of the training, at the end, spent on long windows (with as many tokens per batch)."""
    part: int | None = None
    """Windows that go through the model at once, of each batch; None: all."""
    checkpoint_seconds: float = 180.0
    evaluate_seconds: float = 300.0


@dataclass(slots=True)
class Totals:
    """What a training has done so far, over all its runs."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains `model` on `stream` until the plan's schedule is over, resuming from the plan's checkpoint.

    `settings` are kept with the checkpoint; one with other settings is refused. What is in `pace` may change from run
    to run: `stretches` tells from which step on it was how. `evaluate` is called now and then; `before` is what the
    weights were trained with earlier, for the totals.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        stream: WindowStream,
        plan: Plan,
        reporter: Reporter,
        *,
        optimizers: Optimizers | None = None,
        evaluate: Callable[[], Any] | None = None,
        settings: dict[str, Any] | None = None,
        pace: dict[str, Any] | None = None,
        before: Totals | None = None,
    ) -> None:
        self._parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._model = model
        self._loss = loss
        self._stream = stream
        self._plan = plan
        self._reporter = reporter
        self._optimizers = optimizers or Optimizers(model)
        self._evaluate = evaluate
        self._settings = settings or {}
        self._pace = pace or {}
        self._device = next(model.parameters()).device
        self._begun = before or Totals()
        self.totals = replace(self._begun)
        self.stretches: list[tuple[int, dict[str, Any]]] = []
        """(first step, how it went from there on), in order."""
        self.unsaved: str | None = None
        """Why the last checkpoint is not on the disk; None: it is."""
        self._resume()

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end, or until `stop` says so after a step. False: it was stopped.

        A last checkpoint is stored if the disk takes it (see `unsaved`): what was learned is not lost with it.
        """
        plan, earlier = self._plan, self.totals.seconds
        began = saved = evaluated = time.monotonic()
        recent: deque[tuple[float, int, float]] = deque(maxlen=RECENT)
        self._model.train()
        first = self.totals.steps
        while not (over := self._over()) and not stop():
            before = time.monotonic()
            loss, tokens = self._step()
            now = time.monotonic()
            self.totals.seconds = earlier + now - began
            recent.append((loss, tokens, now - before))
            self._reporter.step(self._progress(recent))
            if self._evaluate is not None and now - evaluated > plan.evaluate_seconds:
                self._evaluate()
                self._model.train()
                evaluated = time.monotonic()
            if now - saved > plan.checkpoint_seconds:
                self._save_if_possible()
                saved = time.monotonic()
        self._model.eval()
        if self.totals.steps > first or not plan.checkpoint.exists():
            self._save_if_possible()
        return over

    def _over(self) -> bool:
        return self._plan.schedule.is_over(*self._place())

    def _place(self) -> tuple[int, float]:
        """Steps and seconds of this training, without those before it."""
        return self.totals.steps - self._begun.steps, self.totals.seconds - self._begun.seconds

    def _step(self) -> tuple[float, int]:
        """One step on one batch: its loss and its tokens."""
        plan = self._plan
        count, length = plan.batch, plan.length
        if plan.schedule.progress(*self._place()) >= 1 - plan.long_share:
            count, length = max(1, plan.batch * plan.length // plan.long_length), plan.long_length
        windows = self._stream.next_batch(count, length).to(self._device)
        total = 0.0
        for part in windows.split(plan.part or count):
            loss = self._loss(part) * (len(part) / count)
            loss.backward()
            total += float(loss.detach())
        if total != total:
            raise FlowspecError(
                f"the loss is no number any more, at step {self.totals.steps}",
                hint="train again from the last checkpoint with a lower --rate, or with --dtype float32",
            )
        self._optimizers.step(plan.schedule.factor(*self._place()))
        if not self.stretches or self.stretches[-1][1] != self._pace:
            self.stretches.append((self.totals.steps, self._pace))
        self.totals.steps += 1
        self.totals.tokens += count * length
        return total, count * length

    def _progress(self, recent: deque[tuple[float, int, float]]) -> Progress:
        schedule = self._plan.schedule
        losses, tokens, seconds = zip(*recent, strict=True)
        return Progress(
            steps=self.totals.steps,
            tokens=self.totals.tokens,
            loss=sum(losses) / len(losses),
            speed=sum(tokens) / max(1e-9, sum(seconds)),
            factor=schedule.factor(*self._place()),
            share=schedule.progress(*self._place()),
            seconds=self._place()[1],
        )

    def _save_if_possible(self) -> None:
        try:
            self._save()
            self.unsaved = None
        except ConfigurationError as error:
            self.unsaved = error.message
            self._reporter.say(f"no checkpoint this time: {error.message}")

    def _save(self) -> None:
        cursor, totals = self._stream.cursor, self.totals
        state = {
            "model": {name: each.detach() for name, each in self._parameters.items()},
            "optimizers": self._optimizers.state_dict(),
            "cursor": [cursor.epoch, cursor.window],
            "totals": [totals.steps, totals.tokens, totals.seconds],
            "settings": self._settings,
            "stretches": self.stretches,
        }
        save_checkpoint(self._plan.checkpoint, state)

    def _resume(self) -> None:
        path = self._plan.checkpoint
        state = load_checkpoint(path)
        if state is None:
            return
        stored = state.get("settings", {})
        changed = [key for key in self._settings if stored.get(key) != self._settings[key]]
        if changed:
            key = changed[0]
            raise ConfigurationError(
                f"{path} was made with {key} {stored.get(key)}, and now it is {self._settings[key]}",
                hint="train on with the same settings, or begin again in another folder",
            )
        restore(self._model, state["model"], path)
        self._optimizers.load_state_dict(state["optimizers"])
        self._stream.cursor = Cursor(*state["cursor"])
        self.totals = Totals(*state["totals"])
        self.stretches = [(int(step), pace) for step, pace in state.get("stretches", [])]
        self._reporter.say(f"resumed at step {self.totals.steps} from {path}")


@torch.no_grad()
def restore(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy a checkpoint's weights into the parameters that are trained. ConfigurationError when they do not fit."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in state or state[name].shape != parameter.shape:
            raise ConfigurationError(
                f"{path} does not hold this model's {name}",
                hint="it is of another training; begin again in another folder",
            )
        parameter.copy_(state[name])
