"""The learning rate as a function of progress: warm up by steps, hold, and reach zero exactly at the end.

The end is a number of steps, or a time: so many minutes of training, whatever the machine gets done in them and however
often the training was interrupted. A paused process still ends on time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """A training ends when the first of the two is reached; at least one of them is given."""

    minutes: float | None = None
    steps: int | None = None
    warmup_steps: int = 60
    warmup: float = 0.05
    """The share of the training in which the rate has risen at the latest, where steps are few."""
    cooldown: float = 0.4
    """The share of the training, at the end, over which the rate falls linearly to zero."""
    peak: float = 1.0
    """The factor between warming up and falling."""

    def progress(self, step: int, seconds: float) -> float:
        """The share of the training that is over before `step`, after `seconds` of training; between 0 and 1."""
        passed = 0.0 if self.minutes is None else seconds / max(1e-9, 60 * self.minutes)
        done = 0.0 if self.steps is None else step / max(1, self.steps)
        return min(1.0, max(passed, done))

    def factor(self, step: int, seconds: float) -> float:
        """What the rates are multiplied by."""
        progress = self.progress(step, seconds)
        rising = min(1.0, max((step + 1) / self.warmup_steps, progress / max(1e-9, self.warmup)))
        falling = min(1.0, (1 - progress) / max(1e-9, self.cooldown))
        return self.peak * min(rising, falling)

    def is_over(self, step: int, seconds: float) -> bool:
        return self.progress(step, seconds) >= 1
