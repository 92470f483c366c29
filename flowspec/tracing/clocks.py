"""How far another node's clock is from this one's, from messages that went there and back.

Monotonic clocks of one machine are the same clock. Those of two machines began at different times and drift apart by
some millionths, so the difference is estimated again and again, and taken in between as growing evenly. The estimate is
never wrong by more than half the round trip, however unequal the two ways are.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

PERIOD = 5 * 10**9
"""Nanoseconds in which the fastest round trip stands for all."""

MOST_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """At `there` on the other clock this one showed `there - offset`, give or take `error`. Nanoseconds."""

    there: int
    offset: int
    error: int


class ClockEstimate:
    """Collects round trips to one node. Its memory is bounded: the longer it goes on, the fewer a second are kept."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._period = PERIOD

    def add(self, sent: int, there: int, received: int) -> None:
        """A message that left here at `sent` was answered at `there`, and the answer was here at `received`."""
        new = Sample(there, there - (sent + received) // 2, (received - sent + 1) // 2)
        samples = self._samples
        if samples and samples[-1].there // self._period == there // self._period:
            samples[-1] = min(samples[-1], new, key=lambda sample: sample.error)
            return
        samples.append(new)
        if len(samples) > MOST_SAMPLES:
            self._period *= 2
            self._samples = [
                min(samples[i : i + 2], key=lambda sample: sample.error) for i in range(0, len(samples), 2)
            ]

    def clock(self) -> Clock | None:
        """None while no answer has come."""
        return Clock(tuple(self._samples)) if self._samples else None


@dataclass(frozen=True, slots=True)
class Clock:
    """A node's clock as another one sees it; without samples the two are the same."""

    samples: tuple[Sample, ...] = ()

    @property
    def error(self) -> float:
        """Seconds by which a time may be wrong."""
        return max((sample.error for sample in self.samples), default=0) / 1e9

    @property
    def offset(self) -> float:
        """Seconds that the other clock was ahead at the first sample."""
        return self.samples[0].offset / 1e9 if self.samples else 0.0

    def here(self, there: int) -> int:
        """The time `there` of the other clock on this one, in nanoseconds."""
        samples = self.samples
        if not samples:
            return there
        after = bisect_left(samples, there, key=lambda sample: sample.there)
        if after in (0, len(samples)):
            return there - samples[max(0, after - 1)].offset
        low, high = samples[after - 1], samples[after]
        share = (there - low.there) / (high.there - low.there)
        return there - low.offset - round(share * (high.offset - low.offset))
