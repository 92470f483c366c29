"""What the policies that draft level by level have in common: the prompt, the tree's chosen tokens, the end of a round.

A round begins with a root that was not among the tokens chosen before: it was guessed nowhere, or not among the best.
Such a policy keeps count of its segments in flight itself (`paced`): how many there are is part of what it stands for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from flowspec.schedule.events import Command, DrafterLost, Event, GrowTree, SegmentReturned, SessionReady, TreeGrown
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.options import MOST_LIVE
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session
from flowspec.schedule.tree import DraftToken, Reroot
from flowspec.wire.messages import DraftTokens


class LevelPolicy(ABC):
    """Base: a policy says what a verdict changes (`_hear`), what to draft (`_draft`) and what to send (`_choose`)."""

    paced: ClassVar[bool] = True

    def __init__(self, session: Session, growth: LevelGrowth) -> None:
        self.session = session
        self.growth = growth
        self._chosen: set[int] = set()
        """Tokens of this round that were sent or shall be."""
        self._older: frozenset[int] = frozenset()
        """Tickets that were in flight when this round began."""

    def handle(self, event: Event, room: Room) -> list[Command]:
        commands: list[Command] = []
        match event:
            case SessionReady():
                # The drafter reads the prompt while the stages do; what it guesses there is of no use to a round.
                self.growth.begin((self.session.tree.root,), 1)
            case SegmentReturned():
                commands = self._hear(event)
            case TreeGrown():
                self.growth.merge(event)
            case DrafterLost():
                self.growth.lost, self.growth.out = True, None
        return [*commands, *self._draft(room)]

    def next_segment(self, room: Room) -> DraftTokens | None:
        session = self.session
        if session.prefilling:
            return session.prompt_chunk(room.pipe.prefill_chunk(len(session.prompt)))
        if session.verdict is None:
            return None
        serials = self._choose(room)
        return session.tree.columns(serials) if serials else None

    # ---- what differs ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _hear(self, event: SegmentReturned) -> list[Command]:
        """Follow what the verdict of a returned segment says, now or later."""

    @abstractmethod
    def _draft(self, room: Room) -> list[GrowTree]:
        """The next step of the drafter, if one is due."""

    @abstractmethod
    def _choose(self, room: Room) -> list[int]:
        """The tokens of the next segment, parents first; none to send nothing now."""

    # ---- for them to use ---------------------------------------------------------------------------------------------

    def _follow(self, event: SegmentReturned) -> tuple[Reroot | None, list[Command]]:
        moved, commands = self.session.advance(event.frontier, event.token)
        if moved is not None:
            self.growth.follow(moved)
            self._chosen = {serial for serial in self._chosen if serial in self.session.tree}
        return moved, commands

    @property
    def _over(self) -> bool:
        """The root is known and nothing was chosen behind it: the round has nothing more to give."""
        session, root = self.session, self.session.tree.root
        return session.verdict is not None and session.root_waits and root not in self._chosen

    def _begin_round(self) -> None:
        """What is in flight now is of no use any more."""
        self._chosen = set()
        self._older = frozenset(self.session.flights)

    @property
    def _in_flight(self) -> int:
        """Segments that have not come back; where stages prune, those of older rounds take no room in the pipe."""
        flights = self.session.flights
        return sum(ticket not in self._older for ticket in flights) if self.session.prunes else len(flights)

    def _take(self, serials: list[int]) -> None:
        """Choose tokens, with those of their ancestors that were not chosen."""
        tree = self.session.tree
        for serial in serials:
            while serial in tree and serial not in self._chosen:
                self._chosen.add(serial)
                serial = tree[serial].parent

    def _waiting(self, *, by_score: bool = True) -> list[DraftToken]:
        """Chosen tokens that were not sent, best first or level by level, as many as there is room for in the caches;
        any prefix can be sent."""
        tree = self.session.tree
        if all(tree[serial].sent for serial in self._chosen):
            return []
        waiting = [token for token in tree.waiting(self.session.remaining) if token.serial in self._chosen]
        waiting = waiting[: max(0, MOST_LIVE - tree.sent)]
        return waiting if by_score else sorted(waiting, key=lambda token: token.depth)
