"""Drafts without a model: what followed the same tokens before, in prompt and output (prompt lookup).

Costs nothing to load and next to nothing to ask. Good where text repeats itself (code, quotations, tables, editing),
silent where it does not. It knows no probabilities but those that counts give; the noise of sampling it leaves aside,
since its doubt is whether the text repeats at all, which noise does not tell (measured: no more hits, worse scores).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from flowspec.drafting.drafter import Children
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import NO_PARENT, DraftTokens
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 8
"""Tokens of context that a match may have."""
RECENT = 32
"""Followers of one context that are looked at, the latest first: bounds a step after frequent tokens."""
DOUBT = 2.0
"""Weight against a context, in occurrences; see `SuffixIndex.followers`."""


@dataclass(slots=True)
class Followers:
    """What followed one context."""

    counts: dict[int, int] = field(default_factory=dict)
    """Token -> how often; the latest is last."""
    total: int = 0

    def add(self, token: int) -> None:
        self.counts[token] = self.counts.pop(token, 0) + 1
        self.total += 1


class SuffixIndex:
    """For every run of 1 to `LONGEST` accepted tokens, what followed it and how often. `add` takes constant time."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], Followers] = {}

    def add(self, token: int) -> None:
        tokens = self.tokens
        for length in range(1, min(LONGEST, len(tokens)) + 1):
            self._after.setdefault(tuple(tokens[-length:]), Followers()).add(token)
        tokens.append(token)

    def followers(self, context: list[int], width: int) -> list[tuple[int, float]]:
        """At most `width` tokens that may follow `context`, with log-probabilities, most probable first.

        Counts of all context lengths n are interpolated, the shortest first: with c(t) the count of t after the last
        n tokens, N the sum of the counts and D the number of different followers,

            P_n(t) = (c(t) + (D + DOUBT) * P_{n-1}(t)) / (N + D + DOUBT),   P_0(t) = 0,

        which is Witten and Bell's method with some doubt added. A context seen once gives 1/4 to its follower when one
        token matches, 0.44 when two do, 0.68 for four and 0.90 for eight. What is left is for tokens never seen there.
        On Python source and on a small model's output, what is given p comes true in a share of about p.
        """
        found: dict[int, float] = {}
        for length in range(1, min(LONGEST, len(context)) + 1):
            after = self._after.get(tuple(context[-length:]))
            if after is None:
                break
            doubt = len(after.counts) + DOUBT
            whole = after.total + doubt
            found = {token: share * doubt / whole for token, share in found.items()}
            for token, count in islice(reversed(after.counts.items()), RECENT):
                found[token] = found.get(token, 0.0) + count / whole
        best = sorted(found.items(), key=lambda pair: -pair[1])[:width]
        return [(token, math.log(share)) for token, share in best]


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
    taps: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._sessions: dict[str, Lookup | None] = {}  # None until the first step

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._sessions[session] = None

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """It reads none."""

    def grow(self, request: GrowTree, width: int) -> Children:
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
