"""The sampling parameters of a request: part of the wire, read by the tail, the drafter and the client alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowspec.errors import RequestError

MAX_SEED = 2**63 - 1

LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0
"""Of repetitions. What is used is between 0.8 and 2; a penalty without a bound makes logits infinite."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is drawn. The order of processing is fixed: penalty, temperature, top-k, top-p, min-p, noise.

    temperature: 0 is the plain argmax. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repetition_penalty: 1 is off; above 1 makes tokens of prompt and output less likely (CTRL, arXiv:1909.05858).
    seed: key of the position-keyed noise, 0 <= seed < 2**63.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def validate(self) -> None:
        """Raise `RequestError` naming the first parameter out of its range."""
        ranges = (
            ("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1 (off)"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 (off) and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                LEAST_PENALTY <= self.repetition_penalty <= MOST_PENALTY,
                f"between {LEAST_PENALTY:g} and {MOST_PENALTY:g}, 1 is off",
            ),
            ("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"between 0 and {MAX_SEED}"),
        )
        for name, value, valid, rule in ranges:
            if not valid or not math.isfinite(value):
                raise RequestError(f"{name} is {value}; it must be {rule}")
