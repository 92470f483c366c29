"""What the bookkeeping of cache rows costs per segment, without any layer: `python -m flowspec.bench.bookkeeping`.

One segment is: prune by a verdict, admit, begin, mask, commit. Pruning moves the rows of K and V of four layers, too.
Only the mask may grow with the context, and it is attention's.
"""

from __future__ import annotations

import itertools
import time
from statistics import median
from typing import Final

import torch

from flowspec.model.cache import CacheShape, TreeCache
from flowspec.program import run_program
from flowspec.wire.messages import NO_PARENT, DraftTokens

CONTEXT: Final = 1000
SEGMENT: Final = 16
WIDTH: Final = 4
ROUNDS: Final = 200
SHAPE: Final = CacheShape(0, 4, 2, 64, torch.float32, torch.device("cpu"))
STEPS: Final = ("prune", "admit", "begin", "mask", "commit")


class Bookkeeper:
    """A cache over `context` rows and a tree of always `tree` rows: a spine of which each token has three siblings.

    Every verdict accepts four tokens of the spine and kills the twelve beside them; the next segment has sixteen.
    """

    def __init__(self, tree: int, context: int) -> None:
        self.cache = TreeCache(SHAPE, context + tree + SEGMENT * (ROUNDS + 1))
        self._decree = context - 1
        self._spine = [self._decree]
        self._serial = context
        self._accepted = 0
        self.cache.begin(DraftTokens(tuple(range(context)), (NO_PARENT, *range(context - 1)), (0,) * context))
        self.cache.commit(self._decree)
        while self.cache.tree_rows < tree:
            self._append(self._segment())

    def round(self) -> list[float]:
        """Seconds of each of `STEPS` for one verdict and one segment."""
        self._accepted += SEGMENT // WIDTH
        self.cache.note(self._spine[self._accepted], self._spine[self._accepted + 1])
        draft = self._segment()
        began = time.perf_counter()
        self.cache.prune()
        return [time.perf_counter() - began, *self._append(draft)]

    def _segment(self) -> DraftTokens:
        """Sixteen tokens, four children of each new end of the spine; the token is the serial, so siblings differ."""
        serials = tuple(range(self._serial, self._serial + SEGMENT))
        self._serial += SEGMENT
        parents: list[int] = []
        for start in range(0, SEGMENT, WIDTH):
            parents += [self._spine[-1]] * WIDTH
            self._spine.append(serials[start])
        return DraftTokens(serials, tuple(parents), serials)

    def _append(self, draft: DraftTokens) -> list[float]:
        stamps = [time.perf_counter()]
        draft = draft.select(self.cache.admit(draft))
        stamps.append(time.perf_counter())
        self.cache.begin(draft)
        stamps.append(time.perf_counter())
        self.cache.mask()
        stamps.append(time.perf_counter())
        self.cache.commit(self._decree)
        stamps.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(stamps)]


def measure_bookkeeping(tree: int = 128, context: int = CONTEXT) -> dict[str, float]:
    """Milliseconds of each of `STEPS` and of their "sum", medians over segments at `tree` live draft tokens."""
    keeper = Bookkeeper(tree, context)
    rounds = [keeper.round() for _ in range(ROUNDS)]
    steps = zip(STEPS, zip(*rounds, strict=True), strict=True)
    return {name: median(times) * 1e3 for name, times in steps} | {"sum": median(map(sum, rounds)) * 1e3}


def main() -> None:
    torch.set_num_threads(1)
    print(f"bookkeeping per segment of {SEGMENT} tokens, {SHAPE.layers} layers, milliseconds")
    print(f"{'tree':>4}{'context':>9}" + "".join(f"{step:>8}" for step in (*STEPS, "sum")))
    for context in (CONTEXT, 4 * CONTEXT):
        for tree in (64, 128):
            times = measure_bookkeeping(tree, context)
            print(f"{tree:4}{context:9}" + "".join(f"{value:8.3f}" for value in times.values()))


if __name__ == "__main__":
    run_program(main)
