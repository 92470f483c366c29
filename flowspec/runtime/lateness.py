"""Waiting until a moment, on average: a thread that sleeps is woken late, and usually about as late as before."""

from __future__ import annotations

from collections import deque
from typing import Final

RECENT: Final = 31
"""Waits of which the median counts."""

MOST: Final = 0.001
"""Seconds: a machine that is later than that is overloaded, which is not to be hidden."""


class Lateness:
    """`lead` is what a wait has to be shorter by to end on time as often as not."""

    def __init__(self) -> None:
        self.lead = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def woke(self, late: float) -> None:
        """A wait ended so many seconds after the moment for which it was asked."""
        self._recent.append(late)
        self.lead = min(MOST, max(0.0, sorted(self._recent)[len(self._recent) // 2]))
