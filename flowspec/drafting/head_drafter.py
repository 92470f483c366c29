"""A draft head as drafter: EAGLE-1/2 and EAGLE-3, from the target's features where they are known, ahead of them else.

A step is one forward over the new rows and those that features have come for, and one LM head. It ranks, as every
drafter, by its own processed log-probabilities plus the noise of the session's positions; over a reduced draft
vocabulary the noise is that of the target's tokens. It knows no weights, no files and no pipe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowspec.drafting.drafter import Children, Unwanted, Wanted, always
from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_rows import HeadRows
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.schedule.events import GrowTree
from flowspec.wire.parameters import SamplingParameters


@dataclass(frozen=True, slots=True)
class HeadSession:
    """One session in one epoch."""

    epoch: int
    rows: HeadRows
    sampler: Sampler


class HeadDrafter:
    """Implements `Drafter` for any head.

    A child's score is the head's log-probability for it after its parent's row. Rows are made in the step that first
    needs them. The token at position 0 has no row and is never expanded. A token whose state is not known yet (its
    prompt's features are still on their way) gets no children; asked again later, it does.
    """

    def __init__(self, head: DraftHead) -> None:
        """`head` is settled."""
        head.settle()
        self._head = head
        self._opened: dict[str, tuple[SamplingParameters, int]] = {}
        self._sessions: dict[str, HeadSession] = {}
        self._ids = None if head.target_tokens is None else head.target_tokens.cpu().numpy()
        self.name = head.kind
        self.taps = head.taps
        self.weight_bytes = head.weight_bytes
        self.layers = head.layer_count

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self.close(session)
        self._opened[session] = (sampling, row_limit)

    def close(self, session: str) -> None:
        self._opened.pop(session, None)
        self._end(session)

    def _end(self, session: str) -> None:
        ended = self._sessions.pop(session, None)
        if ended is not None:
            ended.rows.cache.free()

    @torch.inference_mode()
    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        """As in `Drafter`. Positions that are known are passed over; those behind a gap are ignored."""
        drafting = self._session(session, epoch)
        if drafting is not None:
            drafting.rows.learn(first, features)

    @torch.inference_mode()
    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        drafting = self._session(request.session, request.epoch)
        if drafting is None:
            return ()
        rows = drafting.rows
        if request.frontier is not None and request.token is not None:
            rows.follow(request.frontier, request.token)
        rows.give(request.draft, request.decree)
        rows.advance(request.expand)
        if not wanted():
            raise Unwanted
        return self._rank(drafting, request.expand, width)

    def _session(self, session: str, epoch: int) -> HeadSession | None:
        """The session in that epoch, begun where it is news; None when it is closed, or the epoch over."""
        opened, drafting = self._opened.get(session), self._sessions.get(session)
        if opened is None or (drafting is not None and epoch < drafting.epoch):
            return None
        if drafting is None or epoch > drafting.epoch:
            self._end(session)
            sampling, row_limit = opened
            count = self._head.vocab_size if self._ids is None else len(self._ids)
            sampler = Sampler(sampling, count, self._ids, sharpness=self._head.sharpness)
            history = TokenHistory(self._head.vocab_size) if sampler.needs_history else None
            drafting = HeadSession(epoch, HeadRows(self._head, row_limit, history), sampler)
            self._sessions[session] = drafting
        return drafting

    def _rank(self, drafting: HeadSession, expand: tuple[int, ...], width: int) -> Children:
        rows, sampler = drafting.rows, drafting.sampler
        cache = rows.cache
        found = [(serial, row) for serial in expand if (row := cache.find(serial)) is not None]
        if not found:
            return ()
        # The first token has no row, so a row's place in the sequence is its cache position + 1, a child's one more.
        positions = [cache.position_of(row) + 2 for _, row in found]
        paths = [cache.path_tokens(row) for _, row in found] if sampler.needs_history else ()
        logits = self._head.output(rows.outputs([row for _, row in found]))
        ranked = sampler.rank(logits, positions, width, rows.history, paths)
        return tuple((serial, tuple(children)) for (serial, _), children in zip(found, ranked, strict=True))
