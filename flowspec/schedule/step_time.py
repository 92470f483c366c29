"""How long a step of the drafter takes, as a function of the tokens that it reads and expands: measured, step by step.

A straight line through recent steps, so that a caller can ask what one more token costs. Pure arithmetic: knows no
clock, no drafter and no tree.
"""

from __future__ import annotations

from typing import Final

SPREAD: Final = 4.0
"""Variance of the number of tokens, below which recent steps do not tell what one more token costs."""


class StepTime:
    """Seconds of a step: `base + per_token * tokens`, by least squares with older steps counting less and less."""

    def __init__(self, smoothing: float = 0.1) -> None:
        self._keep = 1.0 - smoothing
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    @property
    def known(self) -> bool:
        """A step was measured."""
        return self._weight > 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """One step with `tokens` tokens took `seconds`."""
        sums = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        held = (self._weight, self._tokens, self._seconds, self._squares, self._products)
        self._weight, self._tokens, self._seconds, self._squares, self._products = (
            self._keep * old + new for old, new in zip(held, sums, strict=True)
        )

    @property
    def per_token(self) -> float:
        """Seconds of one more token; 0.0 while steps of different sizes have not shown it."""
        if not self.known:
            return 0.0
        mean, seconds = self._tokens / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean * mean
        if variance < SPREAD:
            return 0.0
        slope = (self._products / self._weight - mean * seconds) / variance
        return max(0.0, min(slope, seconds / mean))

    def of(self, tokens: float) -> float:
        """Seconds of a step with that many tokens; 0.0 before the first measurement."""
        if not self.known:
            return 0.0
        mean, seconds = self._tokens / self._weight, self._seconds / self._weight
        return max(0.0, seconds + self.per_token * (tokens - mean))
