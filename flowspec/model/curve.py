"""How long a block takes for a segment, as a function of its number of tokens: measured when a stage starts."""

from __future__ import annotations

import time
from typing import Final

import torch

from flowspec.model.cache import TreeCache
from flowspec.model.synthetic_block import AnyBlock
from flowspec.wire.messages import NO_PARENT, DraftTokens

TOKENS: Final = (1, 2, 4, 8, 16, 32, 64)
CONTEXT: Final = 128
"""Rows of the prefix under which the segments are timed."""


def measure(
    block: AnyBlock, *, budget: float = 0.3, tokens: tuple[int, ...] = TOKENS
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(numbers of tokens, seconds of a forward): the least of a few runs each, cache bookkeeping included.

    `tokens` must increase. Rounds over all sizes go on while another fits into about `budget` seconds; one round runs
    at least. Seconds never fall as tokens grow, since a smaller segment can do no worse than a larger one. At the tail
    one row of logits is included.
    """
    began = time.perf_counter()
    context = max(1, min(CONTEXT, block.context_limit - max(tokens)))
    cache = block.new_cache(context + max(tokens))
    chain = range(context)
    _run(block, cache, DraftTokens(tuple(chain), (NO_PARENT, *chain[:-1]), (0,) * context))
    cache.commit(context - 1)
    least = dict.fromkeys(tokens, float("inf"))
    while True:
        before = time.perf_counter()
        for count in tokens:
            least[count] = min(least[count], _time(block, cache, count))
        now = time.perf_counter()
        if now - began + (now - before) > budget:
            break
    cache.free()
    seconds = tuple(min(least[larger] for larger in tokens if larger >= count) for count in tokens)
    return tuple(tokens), seconds


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
