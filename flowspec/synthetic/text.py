"""A text that nobody has to compute: the token at a position follows from a seed alone.

It stands for what a language model would write, in a testbed where only time and acceptance matter.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

VOCABULARY: Final = 32_000
"""Ids of synthetic tokens are below this."""

_SCALE: Final = 2.0**-64


def mix(*numbers: int) -> int:
    """64 bits that depend on all of `numbers` (each from -2^63 to 2^64 - 1), the same on every machine."""
    data = b"".join((number & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little") for number in numbers)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def uniform(*numbers: int) -> float:
    """A number in [0, 1) that depends on all of `numbers`."""
    return mix(*numbers) * _SCALE


class SyntheticText:
    """What the synthetic model writes with one seed; whatever the prompt and the temperature."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def token(self, position: int) -> int:
        """The token at `position`, the first of the prompt being at 0."""
        return mix(self.seed, position) % VOCABULARY
