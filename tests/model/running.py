"""A pipeline without a pipe: the blocks of a model and their caches, called one after the other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from flowspec.model.block import LayerBlock
from flowspec.model.rows import Pruned
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import DraftTokens

NO_DECREE = -1


def chain(tokens: list[int], start: int = 0, parent: int | None = None) -> DraftTokens:
    """Tokens in a row, with serials from `start` on, under `parent` (default: the serial before)."""
    serials = tuple(range(start, start + len(tokens)))
    return DraftTokens(serials, (start - 1 if parent is None else parent, *serials[:-1]), tuple(tokens))


class Blocks:
    """All layers of a model, cut where `cuts` says."""

    def __init__(
        self, path: Path | Checkpoint, cuts: tuple[int, ...], *, dtype: str = "float64", row_limit: int = 400
    ) -> None:
        self.blocks = [LayerBlock.load(path, first, end, dtype=dtype) for first, end in pairwise(cuts)]
        self.row_limit = row_limit
        self.fresh()

    def fresh(self) -> Blocks:
        """Begin again with empty caches."""
        self.caches = [block.new_cache(self.row_limit) for block in self.blocks]
        return self

    def run(self, draft: DraftTokens, decree: int = NO_DECREE) -> torch.Tensor:
        """Logits (tokens of draft, vocab)."""
        hidden = torch.tensor(draft.tokens)
        for block, cache in zip(self.blocks, self.caches, strict=True):
            output = block.forward(hidden, cache, cache.begin(draft), cache.alive)
            assert output is not None
            cache.commit(decree)
            cache.check_integrity()
            hidden = output
        return self.blocks[-1].logits(hidden)

    def run_chain(self, tokens: list[int], chunk: int | None = None) -> torch.Tensor:
        """Tokens by decree, `chunk` at a time."""
        size = chunk or len(tokens)
        parts = [chain(tokens[start : start + size], start) for start in range(0, len(tokens), size)]
        return torch.cat([self.run(part, decree=len(tokens)) for part in parts])

    def prune(self, frontier: int, token: int) -> list[Pruned | None]:
        pruned = []
        for cache in self.caches:
            cache.note(frontier, token)
            pruned.append(cache.prune())
            cache.check_integrity()
        return pruned
