"""A small causal language model as drafter: one forward over the new tokens per step, with a tree cache of its own.

It ranks by its own processed log-probabilities plus the noise of the session's positions, so that at any temperature
its first guess is what the target would draw if both agreed on the distribution. It knows no pipe and no text.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from flowspec.drafting.drafter import Children, Unwanted, Wanted, always
from flowspec.errors import InvariantViolation, LimitExceeded
from flowspec.model.block import LayerBlock
from flowspec.model.cache import TreeCache
from flowspec.model.rows import NO_DRAFT
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import NO_PARENT, DraftTokens
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
    unread: DraftTokens = NO_DRAFT
    """What steps that were broken off were given and have not run."""

    def remember(self, tokens: tuple[int, ...]) -> None:
        if self.history is not None:
            self.history.add(tokens)


class CausalLmDrafter:
    """Implements `Drafter`. `vocab_size` is the target's; None: the same as the draft model's."""

    name = "causal-lm"
    taps: tuple[int, ...] = ()

    def __init__(self, block: LayerBlock, vocab_size: int | None = None) -> None:
        self._block = block
        self._target_size = block.vocab_size if vocab_size is None else vocab_size
        self._shared = min(self._target_size, block.vocab_size)
        self._opened: dict[str, tuple[SamplingParameters, int]] = {}
        self._sessions: dict[str, Drafting] = {}
        self.weight_bytes = block.weight_bytes
        self.layers = block.layer_count

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

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        """It reads none."""

    @torch.inference_mode()
    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        if request.session not in self._opened:
            return ()
        drafting = self._drafting(request)
        serials: list[int] = []
        hidden: list[torch.Tensor] = []
        with suppress(LimitExceeded):  # where the cache is full, what was read up to there is expanded
            unread = self._catch_up(drafting, request.frontier)
            if request.frontier is not None and request.token is not None:
                drafting.cache.note(request.frontier, request.token)
                pruned = drafting.cache.prune()
                if pruned is not None:
                    drafting.remember(pruned.accepted_tokens)
            for part in parts(unread.followed_by(request.draft)):
                if len(drafting.unread):
                    drafting.unread = drafting.unread.followed_by(part)
                    continue
                read, output = self._read(drafting, part, request.decree, wanted)
                chosen = [index for index, serial in enumerate(read.serials) if serial in request.expand]
                if chosen and output is not None:
                    serials += [read.serials[index] for index in chosen]
                    hidden.append(output if len(chosen) == len(read) else output[chosen])
        if not wanted():
            raise Unwanted
        return self._rank(drafting, serials, hidden, width) if serials else ()

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

    def _catch_up(self, drafting: Drafting, frontier: int | None) -> DraftTokens:
        """What was put aside. Of that, the way to the newest verdict's frontier is read now: nothing is pruned without.

        Whatever else of it is dead is never read.
        """
        unread, drafting.unread = drafting.unread, NO_DRAFT
        place = {serial: index for index, serial in enumerate(unread.serials)}
        way: list[int] = []
        while frontier in place:
            way.append(place[frontier])
            frontier = unread.parents[way[-1]]
        for part in parts(unread.select(way[::-1])):
            self._read(drafting, part, NO_PARENT, always)
        return unread

    def _read(
        self, drafting: Drafting, draft: DraftTokens, decree: int, wanted: Wanted
    ) -> tuple[DraftTokens, torch.Tensor | None]:
        """Run what is new of `draft` and not known to be dead; returns that, and its states, None where there are none.

        Tokens whose parent the cache does not have are dead here. Guesses that are not `wanted` any more are put aside
        between two layers: most of them will be dead when the next step comes. Raises `LimitExceeded`.
        """
        cache = drafting.cache
        admitted = cache.admit(draft)
        if not admitted:
            return NO_DRAFT, None
        if len(admitted) < len(draft):
            draft = draft.select(admitted)
        batch = cache.begin(draft)
        guesses = draft.serials[0] > decree
        try:
            output = self._block.forward(self._inputs(draft), cache, batch, wanted if guesses else always)
        except BaseException:
            cache.abort()
            raise
        if output is None:
            cache.abort()
            drafting.unread = drafting.unread.followed_by(draft)
        else:
            drafting.remember(cache.commit(decree))
        return draft, output

    def _inputs(self, draft: DraftTokens) -> torch.Tensor:
        """Token ids (q,); ids in the target's padding, which mean nothing, become one that the draft model has."""
        tokens = torch.tensor(draft.tokens, dtype=torch.int64)
        return tokens if self._shared == self._target_size else tokens.clamp_(max=self._shared - 1)

    def _rank(self, drafting: Drafting, serials: list[int], hidden: list[torch.Tensor], width: int) -> Children:
        cache, sampler = drafting.cache, drafting.sampler
        logits = self._block.logits(hidden[0] if len(hidden) == 1 else torch.cat(hidden))[:, : self._shared]
        positions: list[int] = []
        paths: list[tuple[int, ...]] = []
        for serial in serials:
            row = cache.find(serial)
            if row is None:
                raise InvariantViolation(f"the drafter has no row of {serial}, which it just read")
            positions.append(cache.position_of(row) + 1)
            if sampler.needs_history:
                paths.append(cache.path_tokens(row))
        ranked = sampler.rank(logits, positions, width, drafting.history, paths)
        return tuple((serial, tuple(children)) for serial, children in zip(serials, ranked, strict=True))


def parts(draft: DraftTokens) -> list[DraftTokens]:
    """`draft` in pieces of at most `PREFILL_TOKENS`, none of them empty."""
    if len(draft) <= PREFILL_TOKENS:
        return [draft] if len(draft) else []
    starts = range(0, len(draft), PREFILL_TOKENS)
    return [draft.select(list(range(start, min(start + PREFILL_TOKENS, len(draft))))) for start in starts]
