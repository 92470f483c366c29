"""Drafts without a model: what followed the same tokens before, in prompt and output (prompt lookup).

Costs nothing to load and next to nothing to ask. Good where text repeats itself (code, quotations, tables, editing),
silent where it does not. It knows no probabilities but those that counts give; the noise of sampling it leaves aside,
since its doubt is whether the text repeats at all, which noise does not tell (measured: no more hits, worse scores).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.schedule.events import GrowTree
from flowspec.schedule.suffix_index import LONGEST, SuffixIndex
from flowspec.wire.messages import NO_PARENT, DraftTokens
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Lookup:
    """One session in one epoch: the accepted tokens, indexed, and the living draft tokens behind them."""

    epoch: int
    index: SuffixIndex = field(default_factory=SuffixIndex)
    last: int = NO_PARENT
    """Serial of the last accepted token."""
    draft: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Serial -> (parent, token), a parent before its children."""

    def take(self, draft: DraftTokens, decree: int) -> None:
        """Add new tokens; those up to `decree` are accepted."""
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            if serial <= decree and parent == self.last:
                self.index.add(token)
                self.last = serial
            elif parent == self.last or parent in self.draft:
                self.draft[serial] = (parent, token)

    def accept(self, frontier: int, token: int) -> None:
        """Move the accepted end to `frontier`, and keep what descends from its child that carries `token`."""
        if frontier != self.last and frontier not in self.draft:
            return
        for accepted in self.path(frontier):
            self.index.add(accepted)
        self.last = frontier
        kept: dict[int, tuple[int, int]] = {}
        for serial, (parent, carried) in self.draft.items():
            if parent in kept or (parent == frontier and carried == token):
                kept[serial] = (parent, carried)
        self.draft = kept

    def path(self, serial: int) -> list[int]:
        """Tokens from behind the last accepted one down to `serial`."""
        tokens = []
        while serial != self.last:
            serial, token = self.draft[serial]
            tokens.append(token)
        return tokens[::-1]

    def context(self, serial: int) -> list[int]:
        """The last tokens up to `serial`, as many as a match may have."""
        path = self.path(serial)[-LONGEST:]
        missing = LONGEST - len(path)
        return [*self.index.tokens[-missing:], *path] if missing else path


class NgramDrafter:
    """Implements `Drafter`."""

    name = "ngram"
    weight_bytes = 0
    layers = 0
    taps: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._sessions: dict[str, Lookup | None] = {}  # None until the first step

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._sessions[session] = None

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """It reads none."""

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        if request.session not in self._sessions:
            return ()
        lookup = self._sessions[request.session]
        if lookup is None or lookup.epoch != request.epoch:
            lookup = self._sessions[request.session] = Lookup(request.epoch)
        if request.frontier is not None and request.token is not None:
            lookup.accept(request.frontier, request.token)
        lookup.take(request.draft, request.decree)
        return tuple(
            (serial, tuple(lookup.index.followers(lookup.context(serial), width)))
            for serial in request.expand
            if serial == lookup.last or serial in lookup.draft
        )
