"""The noise that belongs to a position: counter-based Gumbel noise, the same on every device.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so that any noise
value is a pure function of (seed, position, vocabulary index) and nothing is ever drawn in sequence. It knows no torch,
no logits and no sampling parameters.

Exactly, for another implementation (all words are unsigned 32-bit, products 64-bit):

    key      k0 = seed mod 2^32,   k1 = seed >> 32
    counter  c0 = token mod 2^32,  c1 = token >> 32,  c2 = position mod 2^32,  c3 = position >> 32
    ten times:
        (h0, l0) = high and low word of 0xD2511F53 * c0;   (h1, l1) = high and low word of 0xCD9E8D57 * c2
        c0, c1, c2, c3 = h1 ^ c1 ^ k0,  l1,  h0 ^ c3 ^ k1,  l0
        k0 += 0x9E3779B9;  k1 += 0xBB67AE85    (mod 2^32, after each round)
    m = c0 * 2^20 + (c1 >> 12)                 52 bits
    u = (m + 0.5) * 2^-52                      exact in float64, 0 < u < 1
    g = -log(-log(u))                          float64

Up to `u` every bit is fixed; `g` depends on the last digit of the platform's float64 `log`. -3.61 < g < 36.74.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""32-bit words held in 64-bit integers, so that a product of two fits."""

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
HIGHEST = 36.75
"""Above every value that the noise can take."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 8192
"""Tokens worked on at a time: their words stay in a core's own cache."""


def philox(key: tuple[int, int], counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of four counter words (shapes that broadcast) under two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (second >> _HALF) ^ (c1 ^ np.uint64(k0))
        c2 = (first >> _HALF) ^ (c3 ^ np.uint64(k1))
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The uniform number in the open interval (0, 1) of each vocabulary index in `tokens` (n,) at `position`."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    index = tokens.astype(np.uint64)
    here = np.array([position], dtype=np.uint64)
    values = np.empty(index.shape, dtype=np.float64)
    for start in range(0, len(index), _BLOCK):
        block = index[start : start + _BLOCK]
        high, low, _, _ = philox(key, (block & _LOW, block >> _HALF, here & _LOW, here >> _HALF))
        values[start : start + _BLOCK] = (high << np.uint64(20)) | (low >> np.uint64(12))
    values += 0.5
    values *= 2.0**-52
    return values


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of each vocabulary index in `tokens` (n,) at `position`: float64 (n,)."""
    return -np.log(-np.log(uniform(seed, position, tokens)))
