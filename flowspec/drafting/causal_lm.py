"""A small causal language model as drafter: one forward over the new tokens per step, with a tree cache of its own.

It ranks by its own processed log-probabilities plus the noise of the session's positions, so that at any temperature
its first guess is what the target would draw if both agreed on the distribution. It knows no pipe and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowspec.drafting.drafter import Children
from flowspec.errors import LimitExceeded
from flowspec.model.block import LayerBlock
from flowspec.model.cache import TreeCache
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import DraftTokens
from flowspec.wire.parameters import SamplingParameters

PREFILL_TOKENS = 256
"""Most tokens in one forward; bounds the memory of a long prompt's masks."""


@dataclass(slots=True)
class Drafting:
    """One session in one epoch."""

    epoch: int
    cache: TreeCache
    sampler: Sampler
    history: TokenHistory | None

    def remember(self, tokens: tuple[int, ...]) -> None:
        if self.history is not None:
            self.history.add(tokens)


class CausalLmDrafter:
    """Implements `Drafter`. `vocab_size` is the target's; None: the same as the draft model's."""

    name = "causal-lm"

    def __init__(self, block: LayerBlock, vocab_size: int | None = None) -> None:
        self._block = block
        self._target_size = block.vocab_size if vocab_size is None else vocab_size
        self._shared = min(self._target_size, block.vocab_size)
        self._opened: dict[str, tuple[SamplingParameters, int]] = {}
        self._sessions: dict[str, Drafting] = {}
        self.weight_bytes = block.weight_bytes

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: str, device: str, vocab_size: int | None = None) -> CausalLmDrafter:
        """All layers, embedding and head of `checkpoint`."""
        return cls(LayerBlock.load(checkpoint, 0, checkpoint.layer_count, dtype=dtype, device=device), vocab_size)

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._opened[session] = (sampling, row_limit)

    def close(self, session: str) -> None:
        self._opened.pop(session, None)
        drafting = self._sessions.pop(session, None)
        if drafting is not None:
            drafting.cache.free()

    @torch.inference_mode()
    def grow(self, request: GrowTree, width: int) -> Children:
        if request.session not in self._opened:
            return ()
        drafting = self._drafting(request)
        if request.frontier is not None and request.token is not None:
            drafting.cache.note(request.frontier, request.token)
            pruned = drafting.cache.prune()
            if pruned is not None:
                drafting.remember(pruned.accepted_tokens)
        wanted = set(request.expand)
        rows: dict[int, torch.Tensor] = {}
        for start in range(0, len(request.draft), PREFILL_TOKENS):
            indices = list(range(start, min(start + PREFILL_TOKENS, len(request.draft))))
            whole = len(indices) == len(request.draft)
            if not self._read(
                drafting, request.draft if whole else request.draft.select(indices), request.decree, wanted, rows
            ):
                break
        return self._rank(drafting, [serial for serial in request.expand if serial in rows], rows, width)

    def _drafting(self, request: GrowTree) -> Drafting:
        drafting = self._sessions.get(request.session)
        if drafting is None or drafting.epoch != request.epoch:
            if drafting is not None:
                drafting.cache.free()
            sampling, row_limit = self._opened[request.session]
            sampler = Sampler(sampling, self._shared)
            history = TokenHistory(self._target_size) if sampler.needs_history else None
            drafting = Drafting(request.epoch, self._block.new_cache(row_limit), sampler, history)
            self._sessions[request.session] = drafting
        return drafting

    def _read(
        self, drafting: Drafting, draft: DraftTokens, decree: int, wanted: set[int], rows: dict[int, torch.Tensor]
    ) -> bool:
        """Run new tokens and keep the hidden states of those to be expanded; False when the cache is full.

        Tokens whose parent the cache does not have are dead here, and skipped.
        """
        cache = drafting.cache
        admitted = cache.admit(draft)
        if not admitted:
            return True
        if len(admitted) < len(draft):
            draft = draft.select(admitted)
        try:
            batch = cache.begin(draft)
        except LimitExceeded:
            return False
        try:
            hidden = self._block.forward(self._inputs(draft), cache, batch)
        except BaseException:
            cache.abort()
            raise
        assert hidden is not None
        drafting.remember(cache.commit(decree))
        for index, serial in enumerate(draft.serials):
            if serial in wanted:
                rows[serial] = hidden[index]
        return True

    def _inputs(self, draft: DraftTokens) -> torch.Tensor:
        """Token ids (q,); ids in the target's padding, which mean nothing, become one that the draft model has."""
        tokens = torch.tensor(draft.tokens, dtype=torch.int64)
        return tokens if self._shared == self._target_size else tokens.clamp_(max=self._shared - 1)

    def _rank(self, drafting: Drafting, serials: list[int], rows: dict[int, torch.Tensor], width: int) -> Children:
        cache, sampler = drafting.cache, drafting.sampler
        found = [(serial, row) for serial in serials if (row := cache.find(serial)) is not None]
        if not found:
            return ()
        logits = self._block.logits(torch.stack([rows[serial] for serial, _ in found]))[:, : self._shared]
        positions = [cache.position_of(row) + 1 for _, row in found]
        paths = [cache.path_tokens(row) for _, row in found] if sampler.needs_history else ()
        ranked = sampler.rank(logits, positions, width, drafting.history, paths)
        return tuple((serial, tuple(children)) for (serial, _), children in zip(found, ranked, strict=True))
