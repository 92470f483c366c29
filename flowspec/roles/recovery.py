"""What a coordinator does about losses: of stages, of messages, of sessions that a stage cannot go on with.

It tells the scheduler, which lets sessions begin again, and ends the requests for which there is no hope. How a loss is
noticed is the watch's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from flowspec.errors import FlowspecError, PipelineError
from flowspec.roles.request import Request
from flowspec.roles.soundings import Outstanding
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import Event, PipeLost, SegmentsLost, SessionBroken, SessionReady
from flowspec.schedule.session import Session
from flowspec.wire.messages import OpenAcknowledged, Trouble

logger = logging.getLogger(__name__)


class Desk(Protocol):
    """The part of the front desk that this needs."""

    @property
    def requests(self) -> Mapping[str, Request]: ...

    def fail(self, session: str, error: FlowspecError) -> None: ...

    def fail_all(self, error: FlowspecError) -> None: ...

    def call_next(self) -> None: ...


class Recovery:
    """`apply(event)` is the scheduler's ear."""

    def __init__(self, desk: Desk, scheduler: Scheduler, apply: Callable[[Event], None]) -> None:
        self._desk = desk
        self._scheduler = scheduler
        self._apply = apply

    def stage_lost(self, name: str, reason: str) -> None:
        logger.warning("%s; requests wait until the pipe is whole again", reason)
        self._apply(PipeLost())
        # Those who were to wait until a stage that was stopping is gone wait as all others do from now on.
        self._desk.call_next()

    def pipe_given_up(self, name: str, reason: str) -> None:
        """Stage `name` is not back in time (at the start: "", some stage is not there): nobody need wait any longer."""
        logger.log(logging.ERROR if name else logging.INFO, "%s", reason)
        self._desk.fail_all(PipelineError(reason, node=name or None))

    def session_broken(self, trouble: Trouble) -> None:
        """A stage cannot go on with a session in this epoch."""
        if trouble.session is not None:
            reason = f"{trouble.node}: {trouble.reason}"
            request = self._desk.requests.get(trouble.session)
            # What comes again is known: how often it came says the error with which the session is given up.
            if request is not None and request.trouble != reason:
                request.trouble = reason
                logger.warning("session %s begins again: %s", trouble.session, reason)
            self._apply(SessionBroken(trouble.session, trouble.epoch, reason))

    def opened(self, message: OpenAcknowledged) -> None:
        """A stage has made its cache for a session, or refuses to."""
        request = self._desk.requests.get(message.session)
        if request is None or message.epoch != request.epoch:
            return
        if message.refusal:
            self._desk.fail(message.session, PipelineError(message.refusal, session=message.session))
            return
        request.unacknowledged.discard(message.node)
        if not request.unacknowledged:
            self._apply(SessionReady(message.session, message.epoch))

    def outstanding(self) -> Outstanding | None:
        """What was sent down the pipe and has not been answered."""
        opened = [(name, each.epoch) for name, each in self._desk.requests.items() if each.unacknowledged]
        if not opened and not self._scheduler.in_flight:
            return None
        return Outstanding(self._scheduler.last_ticket, tuple(opened))

    def unattended(self) -> bool:
        """Sessions wait, and nothing is in flight."""
        return not self._scheduler.in_flight and bool(self._active())

    def stalled(self, seconds: float) -> None:
        """Sessions have waited that long for nothing. That is a fault of ours: they begin again rather than hang."""
        for session in self._active():
            reason = f"nothing of it has been under way for {seconds:.0f} s"
            logger.error("session %s begins again: %s", session.name, reason)
            self._apply(SessionBroken(session.name, session.epoch, reason))

    def _active(self) -> list[Session]:
        return [session for session in self._scheduler.sessions.values() if session.active]

    def missed(self, outstanding: Outstanding) -> None:
        """A probe has overtaken what was outstanding when it was sent: what still is was lost."""
        self._apply(SegmentsLost(outstanding.ticket))
        for session, epoch in outstanding.opened:
            request = self._desk.requests.get(session)
            if request is not None and request.epoch == epoch and request.unacknowledged:
                self._apply(SessionBroken(session, epoch, "its opening was lost in the pipe"))
