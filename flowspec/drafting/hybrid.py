"""Several drafters as one: what any of them names is a child, and one score scale orders them.

Members are asked for the same tokens, and their opinions pooled as in `calibration`, with weights that each session
learns from which children came true. With one member this is that member with its scores corrected. A member that
fails is left out of the session from then on, and the others go on. It knows no model and no pipe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from flowspec.drafting.calibration import Evidence, Opinion, OpinionPool, evidence
from flowspec.drafting.drafter import Children, Drafter, Unwanted, Wanted, always
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import NO_PARENT
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SURPLUS: Final = 2
"""Members are asked for this many times the children that are wanted, so that each has an opinion on the others'."""
WEIGHTS: Final = {"ngram": 0.3}
"""First weights by the member's name, beside another member; all others have 1, since their scores are probabilities
already (`Sampler.rank`). n-grams repeat what a model has counted in, so they weigh less. Chosen with the demo's drafts
at temperature 0 and 1 (`flowspec.bench.acceptance`): more is better for a weak model at temperature 0, and worse for a
head, and where tokens are drawn."""
BIAS: Final = 0.15
"""Where several members are: what two of them hold likely is likelier than either says."""


@dataclass(slots=True)
class Mixing:
    """One session in one epoch: its weights, the tokens that were given, and opinions that wait for an outcome."""

    epoch: int
    pool: OpinionPool
    last: int = NO_PARENT
    """Serial of the last accepted token."""
    drafts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Serial -> (parent, token) of what is not accepted yet, a parent before its children."""
    opinions: dict[int, Evidence] = field(default_factory=dict)
    """By the serial of the token whose children they are about."""

    def take(self, request: GrowTree) -> None:
        """Hear the request's verdict, and then its new tokens."""
        if request.frontier is not None and request.token is not None:
            self._accept(request.frontier, request.token)
        draft = request.draft
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            if serial <= request.decree and parent == self.last:
                self._settle(self.last, token)
                self.last = serial
            elif parent == self.last or parent in self.drafts:
                self.drafts[serial] = (parent, token)

    def _accept(self, frontier: int, token: int) -> None:
        if frontier != self.last and frontier not in self.drafts:
            return
        serial, came = frontier, token
        while serial != self.last:
            self._settle(serial, came)
            serial, came = self.drafts[serial]
        self._settle(serial, came)
        self.last = frontier
        kept: dict[int, tuple[int, int]] = {}
        for each, (parent, carried) in self.drafts.items():
            if parent in kept or (parent == frontier and carried == token):
                kept[each] = (parent, carried)
        self.drafts = kept
        self.opinions = {each: found for each, found in self.opinions.items() if each in kept or each == frontier}

    def _settle(self, serial: int, came: int) -> None:
        found = self.opinions.pop(serial, None)
        if found:
            self.pool.learn(found, came)


class HybridDrafter:
    """Implements `Drafter`. All of `members` see every request; `taps` are those of all members, each once."""

    def __init__(self, members: Sequence[Drafter]) -> None:
        self.members = tuple(members)
        self.name = "hybrid" if len(self.members) > 1 else self.members[0].name
        self.taps = tuple(dict.fromkeys(tap for member in members for tap in member.taps))
        self.weight_bytes = sum(member.weight_bytes for member in members)
        self.layers = sum(member.layers for member in members)
        self._sessions: dict[str, Mixing | None] = {}  # None until the first step
        self._failed: dict[str, set[int]] = {}

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._sessions[session], self._failed[session] = None, set()
        for index in range(len(self.members)):
            self._try(session, index, lambda member: member.open(session, sampling, row_limit))

    def close(self, session: str) -> None:
        for member in self.members:
            try:
                member.close(session)
            except Exception as error:
                logger.error("the drafter %s failed to close session %s: %s", member.name, session, error)
        self._sessions.pop(session, None)
        self._failed.pop(session, None)

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """As in `Drafter`; every member gets the columns of its own taps."""
        if session not in self._sessions:
            return
        for index, member in enumerate(self.members):
            if member.taps:
                own = self._columns(features, member.taps)
                self._try(session, index, partial(_give, session, epoch, first, own))

    def _columns(self, features: Tensor, taps: tuple[int, ...]) -> Tensor:
        """Those of `taps`, in their order."""
        if taps == self.taps:
            return features
        apart = features.unflatten(1, (len(self.taps), -1))
        own: Tensor = apart[:, [self.taps.index(tap) for tap in taps]].flatten(1)
        return own

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        """The best `width` of all members' children. Raises what the last member that was left raised."""
        session = request.session
        if session not in self._sessions:
            return ()
        mixing = self._sessions[session]
        if mixing is None or mixing.epoch != request.epoch:
            mixing = self._sessions[session] = Mixing(request.epoch, self._first_pool())
        mixing.take(request)
        answers = [self._ask(index, request, SURPLUS * width, wanted) for index in range(len(self.members))]
        if not wanted():
            raise Unwanted
        known = evidence([[answer.get(serial, ()) for serial in request.expand] for answer in answers])
        best = mixing.pool.best(known, len(request.expand), width)
        for place, serial in enumerate(request.expand):
            if best[place] and (serial == mixing.last or serial in mixing.drafts):
                mixing.opinions[serial] = known.at(place)
        return tuple((serial, tuple(children)) for serial, children in zip(request.expand, best, strict=True))

    def _ask(self, index: int, request: GrowTree, width: int, wanted: Wanted) -> dict[int, Opinion]:
        """One member's opinions by serial; none when it has failed, or has broken off."""
        answer: dict[int, Opinion] = {}
        with suppress(Unwanted):
            self._try(request.session, index, lambda member: answer.update(member.grow(request, width, wanted)))
        return answer

    def _first_pool(self) -> OpinionPool:
        if len(self.members) == 1:
            return OpinionPool([1.0])
        return OpinionPool([WEIGHTS.get(member.name, 1.0) for member in self.members], BIAS)

    def _try(self, session: str, index: int, call: Callable[[Drafter], None]) -> None:
        """Have one member do something, unless it has failed in this session. The last that fails may be heard."""
        failed, member = self._failed[session], self.members[index]
        if index in failed:
            return
        try:
            call(member)
        except Unwanted:
            raise
        except Exception as error:
            failed.add(index)
            if len(failed) == len(self.members):
                raise
            logger.error("the drafter %s failed, session %s goes on without it: %s", member.name, session, error)


def _give(session: str, epoch: int, first: int, features: Tensor, member: Drafter) -> None:
    member.take_features(session, epoch, first, features)
