"""The learning rate as a function of the clock: warm up by steps, hold, and reach zero exactly at the deadline.

The deadline is an absolute time, so a paused process still ends on time, and a resumed run may be given a new one:
however long the run was, its last part is a full cooldown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """``start`` and ``deadline`` are seconds of the wall clock; ``max_steps`` may end the run earlier."""

    start: float
    deadline: float
    max_steps: int | None = None
    warmup_steps: int = 60
    cooldown: float = 0.4
    """The share of the time, at the end, over which the rate falls linearly to zero."""
    peak: float = 1.0
    """The factor between warming up and falling."""

    @classmethod
    def for_minutes(
        cls, minutes: float, max_steps: int | None = None, cooldown: float = 0.4, peak: float = 1.0
    ) -> Schedule:
        """A schedule that starts now."""
        now = time.time()
        return cls(now, now + 60 * minutes, max_steps, cooldown=cooldown, peak=peak)

    def progress(self, now: float) -> float:
        """The share of the time that has passed, between zero and one."""
        return min(1.0, max(0.0, (now - self.start) / max(1e-9, self.deadline - self.start)))

    def factor(self, step: int, now: float) -> float:
        """What the rates are multiplied by at this step and time."""
        rising = min(1.0, (step + 1) / self.warmup_steps)
        falling = min(1.0, (1 - self.progress(now)) / self.cooldown)
        return self.peak * min(rising, falling)

    def is_over(self, step: int, now: float) -> bool:
        """Whether the run ends before this step."""
        return now >= self.deadline or (self.max_steps is not None and step >= self.max_steps)
