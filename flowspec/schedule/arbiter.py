"""The one object that a coordinator talks to: all sessions, their policies, and the pipe that they share.

`handle(event) -> commands`, nothing else: no socket, no clock, no torch. The arbiter owns what belongs to the pipe
(profile, tickets, window, credit) and asks the sessions' policies, in fair order, for a segment whenever there is room.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flowspec.errors import ConfigurationError, InvariantViolation
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
    PipeRestored,
    SegmentReturned,
    SegmentsLost,
    SegmentTaken,
    SessionBroken,
    SessionReady,
    SessionRequested,
    SessionStopped,
    TreeGrown,
)
from flowspec.schedule.policies import POLICIES, make_policy
from flowspec.schedule.policy import Policy, Room
from flowspec.schedule.session import Session
from flowspec.schedule.window import PipeModel
from flowspec.wire.messages import DraftTokens, RosterEntry

UNMEASURED = PipeProfile(stages=(((1, 0.01),),))
"""Stands in until a profile comes: one stage, so one segment under way at a time."""

MOST_BARREN = 8
"""Epochs in which a session may gain no token before it is given up: what fails by itself would fail for ever."""

FLOOD = 3
"""Segments in flight, dead ones included, are never more than this many windows."""


class Scheduler:
    """Shares the pipe among sessions: certain tokens before guesses, then whoever has least live work in flight."""

    def __init__(self, profile: PipeProfile = UNMEASURED, settings: ContinuousSettings | None = None) -> None:
        self.settings = settings or ContinuousSettings()
        self._measured(profile)
        self._policies: dict[str, Policy] = {}
        self._sessions: dict[str, Session] = {}
        self._tickets: dict[int, tuple[str, int]] = {}
        self._served: dict[str, int] = {}
        self._last_ticket = 0
        self._taken = 0
        self._whole = True
        """No stage is lost, as far as is known."""

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The live sessions by name; to read only."""
        return MappingProxyType(self._sessions)

    def roster(self) -> tuple[RosterEntry, ...]:
        """All live sessions, with epoch and newest verdict; what is absent is over."""
        return tuple(session.roster_entry for session in self._sessions.values())

    @property
    def last_ticket(self) -> int:
        """That of the newest segment ever sent; 0 before the first."""
        return self._last_ticket

    @property
    def in_flight(self) -> int:
        """Segments that have not come back, those of finished sessions included."""
        return len(self._tickets)

    @property
    def idle(self) -> bool:
        """No session lives and nothing is in flight."""
        return not self._sessions and not self._tickets

    def hold(self, ticket: int) -> float:
        """Seconds for which the news that stage 1 has begun `ticket` may be kept from `handle`.

        The segment for which it makes room would wait in front of the stage until it is free. It leaves as late as it
        can without the stage waiting for it, since the later it is chosen, the more is known. Nothing is held where
        nodes share cores, and while a prompt is on its way: it is not chosen.
        """
        name, epoch = self._tickets.get(ticket, ("", 0))
        session = self._sessions.get(name)
        if session is None or session.epoch != epoch or self.pipe.contended:
            return 0.0
        if any(each.prefilling for each in self._sessions.values()):
            return 0.0
        return self.pipe.slack(session.load(ticket))

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
                self._measured(event.profile)
            case PipeLost():
                self._lose_pipe()
            case PipeRestored():
                self._whole = True
                return [command for session in self._sessions.values() for command in self._restart(session)]
            case SegmentsLost():
                return self._drop(event.ticket + 1)
            case SessionBroken() if event.session in self._sessions:
                return self._break(event)
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
                if isinstance(event, DrafterLost):
                    self._sessions[event.session].drafter = False
                return self._policies[event.session].handle(event, self._room())
        return []

    def _measured(self, profile: PipeProfile) -> None:
        self.pipe = PipeModel(profile)
        self._alone = PipeModel(profile, alone=True)

    def _admit(self, event: SessionRequested) -> list[Command]:
        if event.session in self._sessions:
            raise InvariantViolation("requested twice", session=event.session)
        if event.policy not in POLICIES:
            raise ConfigurationError(
                f"there is no policy {event.policy!r}", session=event.session, hint=f"one of: {', '.join(POLICIES)}"
            )
        session = Session(event)
        self._sessions[session.name] = session
        self._policies[session.name] = self._policy(session)
        self._served[session.name] = 0
        if not self._whole:
            session.pause()
            return []
        return [OpenSession(session.name, session.epoch)]

    def _policy(self, session: Session) -> Policy:
        """A policy for one epoch of a session."""
        return make_policy(session, self.settings)

    def _lose_pipe(self) -> None:
        self._whole = False
        self._tickets.clear()
        self._taken = self._last_ticket
        for session in self._sessions.values():
            session.pause()

    def _restart(self, session: Session, reason: str = "the pipe was lost") -> list[Command]:
        """Begin the session again in a new epoch; what is in flight of the older one is a no-op everywhere."""
        if session.finished:
            return []
        if session.barren >= MOST_BARREN:
            session.broken = True
            words = f"begun again {session.barren} times without a token in between, the last time because {reason}"
            return [BreakSession(session.name, session.epoch, words)]
        session.restart()
        self._policies[session.name] = self._policy(session)
        return [OpenSession(session.name, session.epoch)]

    def _break(self, event: SessionBroken) -> list[Command]:
        session = self._sessions[event.session]
        if event.epoch != session.epoch or session.broken:
            return []
        return self._restart(session, event.reason)

    def _land(self, event: SegmentReturned) -> list[Command]:
        # A stage may still give back tickets of a coordinator that was here before: their sessions differ.
        if self._tickets.get(event.ticket) != (event.session, event.epoch):
            return []
        del self._tickets[event.ticket]
        self._taken = max(self._taken, event.ticket)
        broken = self._drop(event.ticket)
        session = self._sessions.get(event.session)
        if session is None or event.epoch != session.epoch:
            return broken
        session.land(event.ticket)
        if session.broken:
            return broken
        heard = broken + self._policies[event.session].handle(event, self._room())
        # Only a tail that is at fault gives back the last segment without a verdict on it.
        return heard + self._restart(session, "its last segment had no verdict") if session.stranded else heard

    def _drop(self, ticket: int) -> list[Command]:
        """Segments before `ticket` will not come back any more: the pipe is in order, so they were lost."""
        broken: dict[str, Session] = {}
        for lost in [number for number in self._tickets if number < ticket]:
            name, epoch = self._tickets.pop(lost)
            self._taken = max(self._taken, lost)
            session = self._sessions.get(name)
            if session is not None and session.epoch == epoch:
                session.lose(lost)
                broken[name] = session
        return [command for session in broken.values() for command in self._restart(session, "a segment was lost")]

    # ---- sending -----------------------------------------------------------------------------------------------------

    def _active(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.active]

    def _room(self) -> Room:
        active = self._active()
        alone = len(active) == 1 and not active[0].prefilling
        return Room(self._alone if alone else self.pipe, max(1, len(active)))

    def _slots(self, pipe: PipeModel) -> int:
        """How many segments fit into the pipe now; those with nothing alive take no time, so they take no room.

        What the window does not hold back does not fill it either: it would be full for as long as such a session runs,
        and all others would wait for its end.
        """
        held = [ticket for ticket, (name, _) in self._tickets.items() if not self._unheld(name)]
        alive = [ticket for ticket in held if self._is_alive(ticket, *self._tickets[ticket])]
        queued = sum(ticket > self._taken for ticket in alive)
        return min(pipe.window - len(alive), pipe.queue - queued, FLOOD * pipe.window - len(held))

    def _unheld(self, name: str) -> bool:
        """The session's policy keeps count of its segments itself, and is not busy with the prompt any more."""
        policy = self._policies.get(name)
        return policy is not None and policy.paced and not policy.session.prefilling

    def _is_alive(self, ticket: int, name: str, epoch: int) -> bool:
        session = self._sessions.get(name)
        return session is not None and session.epoch == epoch and session.carries(ticket)

    def _fill(self) -> list[Command]:
        commands: list[Command] = []
        room = self._room()
        paced = any(policy.paced for policy in self._policies.values())
        while (slots := self._slots(room.pipe)) > 0 or paced:
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
        active = self._active()
        without = sum(not session.flights for session in active)

        def rank(session: Session) -> tuple[bool, int, int]:
            certain = session.prefilling or session.root_waits
            return not certain, session.live_work, self._served[session.name]

        for session in sorted(active, key=rank):
            # A session that has nothing under way keeps a slot: nobody may take the last one from it.
            if not self._unheld(session.name) and (slots <= 0 or (session.flights and slots <= without)):
                continue
            draft = self._policies[session.name].next_segment(room)
            if draft is not None:
                return session, draft
        return None

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the books do not agree; for tests, after every event."""
        for policy in self._policies.values():
            if isinstance(policy, Continuous):
                policy.growth.check_integrity()
        for session in self._sessions.values():
            session.check_integrity()
            if session.finished:
                raise InvariantViolation("finished, yet it lives on", session=session.name)
            expected = {t for t, owner in self._tickets.items() if owner == (session.name, session.epoch)}
            if set(session.flights) != expected:
                raise InvariantViolation("tickets and flights differ", session=session.name)
        if not 0 <= self._taken <= self._last_ticket:
            raise InvariantViolation("credit for segments that were never sent")
