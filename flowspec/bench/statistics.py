"""Ratios of speeds over questions, with confidence intervals: a paired bootstrap, seeded.

Both policies of a ratio answered the same questions in turns, so a hard question, or a slow minute of the machine, is
in numerator and denominator alike; drawing questions, with all that was measured on them, keeps it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 4000
CONFIDENCE: Final = 0.95
SEED: Final = 20_250_704

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pace:
    """What was written after the first token, and how long it took (seconds)."""

    tokens: float
    seconds: float

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.tokens + other.tokens, self.seconds + other.seconds)

    @property
    def rate(self) -> float:
        """Tokens per second; 0 when no time passed."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the interval in which it lies with `CONFIDENCE`; no interval where no set has two questions."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def total(paces: Iterable[Pace]) -> Pace:
    """All tokens, and all seconds."""
    return sum(paces, Pace(0.0, 0.0))


def mean_ratio(sets: Sequence[tuple[Mapping[str, Pace], Mapping[str, Pace]]], *, seed: int = SEED) -> Estimate:
    """How many times as fast the first of a pair is as the second: the mean over the pairs, which weigh alike.

    A pair holds the paces of two contenders on one set of questions (the keys); those that both answered count, as all
    tokens over all seconds. Each set is drawn from by itself. Raises `ValueError` for a pair with no common question.
    """
    generator = np.random.default_rng(seed)
    values: list[float] = []
    draws: list[Array] = []
    drawn = False
    for fast, slow in sets:
        both = sorted(fast.keys() & slow.keys())
        if not both:
            raise ValueError("the two have no question in common")
        above, below = _columns(fast, both), _columns(slow, both)
        chosen = generator.integers(0, len(both), (RESAMPLES, len(both)))
        values.append(float(_rates(above, np.arange(len(both))) / _rates(below, np.arange(len(both)))))
        draws.append(_rates(above, chosen) / _rates(below, chosen))
        drawn = drawn or len(both) > 1
    value = float(np.mean(values))
    if not drawn:
        return Estimate(value)
    outside = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(np.mean(draws, axis=0), (outside, 1.0 - outside))
    return Estimate(value, float(low), float(high))


def _columns(paces: Mapping[str, Pace], questions: Sequence[str]) -> Array:
    """Tokens and seconds of each question."""  # (questions, 2)
    return np.array([(paces[question].tokens, paces[question].seconds) for question in questions], dtype=np.float64)


def _rates(columns: Array, chosen: Array) -> Array:
    """All tokens over all seconds of the questions that `chosen` names."""  # (..., questions) -> (...)
    sums = columns[chosen].sum(axis=-2)
    return np.asarray(sums[..., 0] / sums[..., 1])
