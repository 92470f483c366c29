"""How long a block takes for a segment, as a function of its number of tokens.

A stage measures itself when it starts (`measure`). Before there is a stage, `flowspec plan` asks what one would take on
this machine, whatever else the machine is doing (`measure_apart`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

import torch

from flowspec.model.cache import TreeCache
from flowspec.model.synthetic_block import AnyBlock
from flowspec.wire.messages import NO_PARENT, DraftTokens

TOKENS: Final = (1, 2, 4, 8, 16, 32, 64)
CONTEXT: Final = 128
"""Rows of the prefix under which the segments are timed."""

ROUNDS: Final = 3
"""Runs of every size before `measure_apart` believes what it sees, however long they take."""

WIDE: Final = 2.0
"""From here on repetitions disagree. On an idle machine the middle one takes at most 1.2 times the least; two threads
beside two busy loops on two cores take up to 300 times (measured)."""

HELD_UP: Final = 4.0
"""Several threads that take so many times as long as one wait for cores that somebody else has: for a small layer they
are of little use, but they do that little harm."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A time curve and how far it can be trusted."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    spread: float
    """How many times as long as the least the middle repetition took, of the size at which they differ most."""

    @property
    def certain(self) -> bool:
        """Repetitions agree."""
        return self.spread < WIDE


def measure(
    block: AnyBlock, *, budget: float = 0.3, tokens: tuple[int, ...] = TOKENS
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(numbers of tokens, seconds of a forward): the least of a few runs each, cache bookkeeping included.

    `tokens` must increase. Rounds over all sizes go on while another fits into about `budget` seconds; one round runs
    at least. Seconds never fall as tokens grow, since a smaller segment can do no worse than a larger one. At the tail
    one row of logits is included.
    """
    found = _repeat(block, budget, tokens)
    return found.tokens, found.seconds


def measure_apart(block: AnyBlock, threads: int, *, budget: float = 1.0) -> Timing:
    """What a node with so many torch threads takes if nobody else wants its cores, though here somebody may.

    Threads of one forward wait for one another at every step, and while they wait they spin. One whose core is taken
    holds up all of them for whole time slices, so beside other work several threads take hundreds of times as long, and
    often no repetition is left alone. One thread's own time is hardly any longer then: where several disagree, or
    take far longer than one, the curve is the least of both, and not `certain`.
    """
    if block.device.type != "cpu":
        return _repeat(block, budget, TOKENS, ROUNDS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _repeat(block, budget, TOKENS, ROUNDS)
        if threads == 1:
            return one
        torch.set_num_threads(threads)
        several = _repeat(block, budget, TOKENS, ROUNDS)
    finally:
        torch.set_num_threads(before)
    pairs = tuple(zip(several.seconds, one.seconds, strict=True))
    held_up = max(together / alone for together, alone in pairs)
    if several.certain and held_up < HELD_UP:
        return several
    return replace(several, seconds=tuple(map(min, pairs)), spread=max(several.spread, held_up))


def _repeat(block: AnyBlock, budget: float, tokens: tuple[int, ...], rounds: int = 1) -> Timing:
    """Time every size at least `rounds` times, and on while another round fits into the budget."""
    began = time.perf_counter()
    context = max(1, min(CONTEXT, block.context_limit - max(tokens)))
    cache = block.new_cache(context + max(tokens))
    chain = range(context)
    _run(block, cache, DraftTokens(tuple(chain), (NO_PARENT, *chain[:-1]), (0,) * context))
    cache.commit(context - 1)
    times: dict[int, list[float]] = {count: [] for count in tokens}
    while True:
        before = time.perf_counter()
        for count in tokens:
            times[count].append(_time(block, cache, count))
        now = time.perf_counter()
        if now - began + (now - before) > budget and len(times[tokens[0]]) >= rounds:
            break
    cache.free()
    least = {count: min(each) for count, each in times.items()}
    seconds = tuple(min(least[larger] for larger in tokens if larger >= count) for count in tokens)
    spread = max(median(each) / least[count] for count, each in times.items())
    return Timing(tuple(tokens), seconds, spread)


def _time(block: AnyBlock, cache: TreeCache, count: int) -> float:
    """Seconds for one segment of `count` tokens, all children of the last accepted row."""
    last = cache.last_accepted
    assert last is not None
    draft = DraftTokens(tuple(range(last + 1, last + 1 + count)), (last,) * count, (0,) * count)
    # All nodes of a machine start at once. Where one thread does all the work, its own time leaves the others' out.
    alone = block.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    began = clock()
    hidden = _run(block, cache, draft)
    if block.is_tail:
        block.logits(hidden[:1])
    if hidden.device.type == "cuda":
        torch.cuda.synchronize(hidden.device)
    seconds = clock() - began
    cache.abort()
    return seconds


def _run(block: AnyBlock, cache: TreeCache, draft: DraftTokens) -> torch.Tensor:
    batch = cache.begin(draft)
    count = len(draft)
    if block.is_first:
        inputs = torch.zeros(count, dtype=torch.int64)
    else:
        inputs = torch.zeros(count, block.hidden_size, dtype=block.dtype)
    hidden = block.forward(inputs, cache, batch)
    assert hidden is not None
    return hidden
