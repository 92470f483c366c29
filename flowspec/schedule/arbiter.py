"""The one object that a coordinator talks to: all sessions, their policies, and the pipe that they share.

`handle(event) -> commands`, nothing else: no socket, no clock, no torch. The arbiter owns what belongs to the pipe
(profile, tickets, window, credit) and asks the sessions' policies, in fair order, for a segment whenever there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowspec.errors import ConfigurationError, InvariantViolation
from flowspec.schedule.autoregressive import Autoregressive
from flowspec.schedule.continuous import Continuous, ContinuousSettings
from flowspec.schedule.events import (
    BreakSession,
    Command,
    DrafterLost,
    Event,
    FeaturesArrived,
    OpenSession,
    PipeLost,
    PipeMeasured,
    PipeProfile,
    SegmentReturned,
    SegmentTaken,
    SessionReady,
    SessionRequested,
    SessionStopped,
    TreeGrown,
)
from flowspec.schedule.policy import Policy, Room
from flowspec.schedule.session import Session
from flowspec.schedule.window import PipeModel
from flowspec.wire.messages import DraftTokens, RosterEntry

UNMEASURED = PipeProfile(stages=(((1, 0.01),),))
"""Stands in until a profile comes: one stage, so one segment under way at a time."""

FLOOD = 3
"""Segments in flight, dead ones included, are never more than this many windows."""

_FACTORIES: dict[str, Callable[[Session, ContinuousSettings], Policy]] = {
    "autoregressive": lambda session, _: Autoregressive(session),
    "flowspec": Continuous,
}

POLICIES = tuple(_FACTORIES)
"""Names of the policies, as a request gives them."""


DRAFTLESS = frozenset({"autoregressive"})
"""Those that never ask a drafter."""


class Scheduler:
    """Shares the pipe among sessions: certain tokens before guesses, then whoever has least live work in flight."""

    def __init__(self, profile: PipeProfile = UNMEASURED, settings: ContinuousSettings | None = None) -> None:
        self.settings = settings or ContinuousSettings()
        self.pipe = PipeModel(profile)
        self._policies: dict[str, Policy] = {}
        self._sessions: dict[str, Session] = {}
        self._tickets: dict[int, tuple[str, int]] = {}
        self._served: dict[str, int] = {}
        self._last_ticket = 0
        self._taken = 0

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The live sessions by name; to read only."""
        return MappingProxyType(self._sessions)

    def roster(self) -> tuple[RosterEntry, ...]:
        """All live sessions, with epoch and newest verdict; what is absent is over."""
        return tuple(session.roster_entry for session in self._sessions.values())

    @property
    def in_flight(self) -> int:
        """Segments that have not come back, those of finished sessions included."""
        return len(self._tickets)

    @property
    def idle(self) -> bool:
        """No session lives and nothing is in flight."""
        return not self._sessions and not self._tickets

    @property
    def live_limit(self) -> int:
        """Most draft tokens, beside prompt and output, that a session ever has in the stages' caches."""
        return self.settings.tree

    # ---- events ------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Take notice of what happened; what to do now, in this order."""
        commands = self._notice(event)
        for name in [name for name, session in self._sessions.items() if session.finished]:
            del self._sessions[name], self._policies[name], self._served[name]
        return commands + self._fill()

    def _notice(self, event: Event) -> list[Command]:
        match event:
            case SessionRequested():
                return self._admit(event)
            case PipeMeasured():
                self.pipe = PipeModel(event.profile)
            case PipeLost():
                return self._drop(self._last_ticket + 1)
            case SegmentTaken():
                self._taken = max(self._taken, min(event.ticket, self._last_ticket))
            case SegmentReturned():
                return self._land(event)
            case SessionStopped() if event.session in self._sessions:
                return self._sessions[event.session].stop(event.reason)
            case SessionReady() if event.session in self._sessions:
                if self._sessions[event.session].acknowledge(event.epoch):
                    return self._policies[event.session].handle(event, self._room())
            case FeaturesArrived() if event.session in self._sessions:
                if self._sessions[event.session].read_features(event.epoch, event.count):
                    return self._policies[event.session].handle(event, self._room())
            case TreeGrown() | DrafterLost() if event.session in self._policies:
                return self._policies[event.session].handle(event, self._room())
        return []

    def _admit(self, event: SessionRequested) -> list[Command]:
        if event.session in self._sessions:
            raise InvariantViolation("requested twice", session=event.session)
        if event.policy not in _FACTORIES:
            raise ConfigurationError(
                f"there is no policy {event.policy!r}", session=event.session, hint=f"one of: {', '.join(POLICIES)}"
            )
        session = Session(event)
        self._sessions[session.name] = session
        self._policies[session.name] = _FACTORIES[event.policy](session, self.settings)
        self._served[session.name] = 0
        return [OpenSession(session.name, session.epoch)]

    def _land(self, event: SegmentReturned) -> list[Command]:
        if self._tickets.pop(event.ticket, None) is None:
            return []
        self._taken = max(self._taken, event.ticket)
        broken = self._drop(event.ticket)
        session = self._sessions.get(event.session)
        if session is None or event.epoch != session.epoch:
            return broken
        session.land(event.ticket)
        return broken + self._policies[event.session].handle(event, self._room())

    def _drop(self, ticket: int) -> list[Command]:
        """Segments before `ticket` will not come back any more: the pipe is in order, so they were lost."""
        commands: list[Command] = []
        for lost in [number for number in self._tickets if number < ticket]:
            name, epoch = self._tickets.pop(lost)
            self._taken = max(self._taken, lost)
            session = self._sessions.get(name)
            if session is not None and session.epoch == epoch and session.lose(lost):
                commands.append(BreakSession(name, epoch, "a segment was lost in the pipe"))
        return commands

    # ---- sending -----------------------------------------------------------------------------------------------------

    def _room(self) -> Room:
        return Room(self.pipe, max(1, sum(session.active for session in self._sessions.values())))

    def _slots(self) -> int:
        """How many segments fit into the pipe now; those with nothing alive take no time, so they take no room."""
        pipe = self.pipe
        alive = [ticket for ticket, owner in self._tickets.items() if self._is_alive(ticket, *owner)]
        queued = sum(ticket > self._taken for ticket in alive)
        return min(pipe.window - len(alive), pipe.queue - queued, FLOOD * pipe.window - len(self._tickets))

    def _is_alive(self, ticket: int, name: str, epoch: int) -> bool:
        session = self._sessions.get(name)
        return session is not None and session.epoch == epoch and session.carries(ticket)

    def _fill(self) -> list[Command]:
        commands: list[Command] = []
        room = self._room()
        while (slots := self._slots()) > 0:
            choice = self._choose(room, slots)
            if choice is None:
                break
            session, draft = choice
            self._last_ticket += 1
            self._tickets[self._last_ticket] = (session.name, session.epoch)
            self._served[session.name] = self._last_ticket
            commands.append(session.dispatch(draft, self._last_ticket))
        return commands

    def _choose(self, room: Room, slots: int) -> tuple[Session, DraftTokens] | None:
        active = [session for session in self._sessions.values() if session.active]
        without = sum(not session.flights for session in active)

        def rank(session: Session) -> tuple[bool, int, int]:
            certain = session.prefilling or session.root_waits
            return not certain, session.live_work, self._served[session.name]

        for session in sorted(active, key=rank):
            # A session that has nothing under way keeps a slot: nobody may take the last one from it.
            if session.flights and slots <= without:
                continue
            draft = self._policies[session.name].next_segment(room)
            if draft is not None:
                return session, draft
        return None

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the books do not agree; for tests, after every event."""
        for session in self._sessions.values():
            session.check_integrity()
            if session.finished:
                raise InvariantViolation("finished, yet it lives on", session=session.name)
            expected = {t for t, owner in self._tickets.items() if owner == (session.name, session.epoch)}
            if set(session.flights) != expected:
                raise InvariantViolation("tickets and flights differ", session=session.name)
        if not 0 <= self._taken <= self._last_ticket:
            raise InvariantViolation("credit for segments that were never sent")
