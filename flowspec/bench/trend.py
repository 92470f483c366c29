"""Does a figure grow? A robust line through samples of it, and what of it counts as growth. Pure.

The line is Theil and Sen's: its slope is the median of the slopes between all pairs of samples, so that a few samples
in a busy moment do not tilt it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

ENDS: Final = 10
"""The first and the last of so many parts of the samples stand for the beginning and the end."""

ALLOWED_BYTES: Final = 2_000_000
"""What memory may gain: an allocator's holes are not all found within one warm-up."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Of a figure over `seconds`; everything but `seconds` and `slope` (per second) is in the figure's own unit."""

    seconds: float
    begin: float
    """Median of the first samples."""
    end: float
    """Median of the last ones."""
    most: float
    slope: float

    @property
    def grown(self) -> float:
        """What it gained: along the line, or from the first samples to the last, whichever is more."""
        return max(self.slope * self.seconds, self.end - self.begin)

    @property
    def flat(self) -> bool:
        """Of memory in bytes: it gained less than it may."""
        return self.grown < ALLOWED_BYTES


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Of pairs (seconds, figure), each later than the one before. Raises `ValueError` for fewer than two."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples make no line")
    part = max(1, len(samples) // ENDS)
    values = [value for _, value in samples]
    slopes = [(after - before) / (later - earlier) for (earlier, before), (later, after) in combinations(samples, 2)]
    return Trend(
        seconds=samples[-1][0] - samples[0][0],
        begin=median(values[:part]),
        end=median(values[-part:]),
        most=max(values),
        slope=median(slopes),
    )
