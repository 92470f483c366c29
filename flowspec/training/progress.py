"""How far a training is, as one value, and what is made of it: plain lines, whoever reads them.

A bar on a terminal is the command line's affair (`flowspec.cli.train`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """After a step."""

    steps: int
    tokens: int
    loss: float
    """Mean of the last steps, in nats."""
    speed: float
    """Tokens per second, over the last steps."""
    factor: float
    """Of the learning rates."""
    share: float
    """Of the whole training, 0 to 1."""
    seconds: float
    """Of training so far, earlier runs included."""

    @property
    def seconds_left(self) -> float:
        """If the rest takes as long as what was done; 0 before anything is known."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else 0.0


class Reporter(Protocol):
    """Hears of every step, and of what happens between steps."""

    def step(self, progress: Progress) -> None: ...

    def say(self, text: str) -> None: ...


class Lines:
    """A line every `seconds` seconds, and every word that is said; flushed, for logs."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next = 0.0

    def step(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next or progress.share >= 1:
            self._next = now + self._seconds
            print(described(progress), flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)


def described(progress: Progress) -> str:
    """One line of at most 100 columns."""
    return (
        f"step {progress.steps}  loss {progress.loss:.4f}  {progress.tokens / 1e6:.2f}M tokens  "
        f"{progress.speed:.0f}/s  rate x{progress.factor:.2f}  {progress.seconds_left / 60:.1f} min left"
    )
