"""Which tokens top-k, top-p and min-p keep, as laid down in `sampling`; found by thresholds, not by sorting indices.

It knows no temperature, no penalty and no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

FIRST_LOOK = 1024
"""How many of the best tokens top-p looks at first; it looks at `WIDER` times as many as often as it must."""
WIDER = 8


def keep(s: Floats, top_k: int, top_p: float, min_p: float) -> Indices | None:
    """The kept indices of `s` (V,), increasing; None when no cut is asked for. The largest of `s` is 0."""
    limited = 0 < top_k < len(s)
    if not limited and top_p >= 1.0:
        return np.flatnonzero(np.exp(s) >= min_p) if min_p > 0.0 else None
    if limited:
        values = largest(s, top_k)
        values = values[: nucleus(values, top_p, None)] if top_p < 1.0 else values
    else:
        look, total = FIRST_LOOK, float(np.exp(s).sum())
        values = largest(s, look)
        while (count := nucleus(values, top_p, total)) > len(values) and len(values) < len(s):
            look *= WIDER
            values = largest(s, look)
        values = values[:count]
    if min_p > 0.0:
        values = values[: max(1, int(np.count_nonzero(np.exp(values) >= min_p)))]
    return members(s, values)


def largest(s: Floats, count: int) -> Floats:
    """The `count` largest values of `s`, largest first; all of them when there are fewer."""
    head = s if count >= len(s) else np.partition(s, len(s) - count)[len(s) - count :]
    return np.sort(head)[::-1]


def nucleus(values: Floats, top_p: float, total: float | None) -> int:
    """How many of the ordered `values` top-p keeps; more than there are when their sum does not reach `top_p * total`.

    `total` None: the values are all there is.
    """
    sums = np.cumsum(np.exp(values))
    reached = int(np.searchsorted(sums, top_p * (float(sums[-1]) if total is None else total), side="left"))
    return reached + 1


def members(s: Floats, values: Floats) -> Indices:
    """The indices, increasing, of the first `len(values)` tokens in order, whose values are `values`."""
    threshold = values[-1]
    kept = np.flatnonzero(s >= threshold)
    surplus = len(kept) - len(values)
    if surplus == 0:
        return kept
    last = np.flatnonzero(s[kept] == threshold)[-surplus:]  # among equals the lower index comes first
    return np.delete(kept, last)


@dataclass(frozen=True, slots=True)
class CutDistances:
    """How far tokens are from changing sides of the cuts, as far as values would have to move for it."""

    order: Indices
    """All tokens, best first."""
    kept: int
    """How many of them are kept."""
    s: Floats
    """Values in that order."""
    bounds: tuple[tuple[int, Floats], ...]
    """Per active cut: how many it keeps, and how far each token in order is from its edge."""

    def of(self, rank: int) -> float:
        """Of the token at `rank`: until some cut throws it out when kept, until all cuts let it in otherwise."""
        inside = [float(distance[rank]) for count, distance in self.bounds if rank < count]
        outside = [float(distance[rank]) for count, distance in self.bounds if rank >= count]
        if outside:
            return max(outside)
        return min(inside, default=math.inf)


def measure(s: Floats, top_k: int, top_p: float, min_p: float) -> CutDistances:
    """The cuts again, by a full sort: for explaining, not for speed."""
    order = np.argsort(-s, kind="stable")
    ordered = s[order]
    count, bounds = len(s), []
    if 0 < top_k < count:
        count = top_k
        bounds.append((count, edge_distance(ordered, count)))
    if top_p < 1.0:
        limited = count < len(s)
        sums = np.cumsum(np.exp(ordered))
        total = float(sums[count - 1]) if limited else float(np.exp(s).sum())
        reached = min(count, nucleus(ordered[:count], top_p, total))
        before = np.concatenate(([0.0], sums[:-1]))
        part = before / total
        with np.errstate(divide="ignore"):
            # Values before the edge move by one amount and the others by its opposite: this much for that mass.
            by_mass = np.abs(top_p - part) / (2.0 * part * np.maximum(1.0 - part, 0.0))
        bounds.append((reached, np.minimum(by_mass, edge_distance(ordered, reached))))
        count = reached
    if min_p > 0.0:
        reached = max(1, int(np.count_nonzero(np.exp(ordered) >= min_p)))
        bounds.append((reached, np.abs(ordered - math.log(min_p))))
        count = min(count, reached)
    return CutDistances(order, count, ordered, tuple(bounds))


def edge_distance(ordered: Floats, count: int) -> Floats:
    """How far each ordered value is from the one just across the edge after `count` values."""
    across = np.where(
        np.arange(len(ordered)) < count, ordered[count] if count < len(ordered) else -np.inf, ordered[count - 1]
    )
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(ordered - across), nan=0.0, posinf=np.inf)
