"""The law of sampling, word by word: full sorts, loops, noise for everything. The oracle of the fast code."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from flowspec.wire.parameters import SamplingParameters

Floats = npt.NDArray[np.float64]


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in plain integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniform(seed: int, position: int, token: int) -> float:
    key = (seed % 2**32, seed >> 32)
    counter = (token % 2**32, token >> 32, position % 2**32, position >> 32)
    high, low, _, _ = philox(key, counter)
    return (high * 2**20 + (low >> 12) + 0.5) * 2.0**-52


def noise(seed: int, position: int, count: int) -> Floats:
    return -np.log(-np.log(np.array([uniform(seed, position, token) for token in range(count)])))


def processed(logits: Floats, parameters: SamplingParameters, seen: Iterable[int] = ()) -> tuple[Floats, list[int]]:
    """`s` of all tokens, and the kept ones in order, best first."""
    values = logits.astype(np.float64)
    for token in set(seen):
        value, penalty = values[token], parameters.repetition_penalty
        values[token] = value / penalty if value > 0 else value * penalty
    if parameters.temperature == 0:
        return values, sorted(range(len(values)), key=lambda token: (-values[token], token))
    with np.errstate(over="ignore"):
        s = (values - values.max()) / parameters.temperature
    kept = sorted(range(len(s)), key=lambda token: (-s[token], token))
    if parameters.top_k:
        kept = kept[: parameters.top_k]
    if parameters.top_p < 1:
        weights = np.exp(s[kept])
        total = np.exp(s).sum() if len(kept) == len(s) else np.cumsum(weights)[-1]
        mass, count = 0.0, 0
        while count < len(kept) and mass < parameters.top_p * total:
            mass, count = mass + weights[count], count + 1
        kept = kept[:count]
    if parameters.min_p > 0:
        kept = [token for token in kept if math.exp(s[token]) >= parameters.min_p or token == kept[0]]
    return s, kept


def sample(logits: Floats, position: int, parameters: SamplingParameters, seen: Iterable[int] = ()) -> int:
    s, kept = processed(logits, parameters, seen)
    if parameters.temperature == 0:
        return kept[0]
    noised = s + noise(parameters.seed, position, len(s))
    return max(sorted(kept), key=lambda token: noised[token])
