"""Traces at the coordinator: notes what it decides for traced sessions, and passes on to clients what all nodes noted.

A trace never holds a request up: its parts follow what the client waits for, and what does not come in time is left
out. While no session is traced, all that this costs is the question whether `live` is empty.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowspec.roles.request import Admitted, Request
from flowspec.roles.session_notes import SessionNotes
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.choice import choices, was_guessed
from flowspec.schedule.events import (
    Command,
    EmitTokens,
    Event,
    FinishSession,
    GrowTree,
    SegmentReturned,
    TreeGrown,
)
from flowspec.tracing.clocks import ClockEstimate
from flowspec.tracing.records import parts
from flowspec.wire.codec import INT_MAX
from flowspec.wire.messages import (
    ClockAnswer,
    ClockQuery,
    ClockSample,
    Features,
    Message,
    Segment,
    TracedNode,
    TraceEnd,
    TracePart,
    TraceRecords,
)

QUERY_INTERVAL = 50 * 10**6
"""Nanoseconds between two questions for the stages' clocks."""

MOST_QUERIES = 64


@dataclass(slots=True)
class Traced:
    """One traced session, until its trace has gone to the client."""

    request: Request
    notes: SessionNotes
    epoch: int
    missing: set[str]
    """Stages that have not sent all they noted."""
    clocks: dict[str, ClockEstimate]
    """Of stages on other machines."""
    dropped: dict[str, int]
    alarm: asyncio.TimerHandle | None = None
    """Set when the session has finished: what is missing then is not waited for any longer."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event that the scheduler is about to be told."""

    event: Event
    at: int
    guessed: bool
    """It is a verdict, and the token that it samples is in the tree."""


class TraceDesk:
    """`tell(peer, message)` sends to a client; `deadline` seconds after its end a session's trace goes as it is."""

    def __init__(
        self,
        node: str,
        stages: Sequence[str],
        *,
        tell: Callable[[bytes, Message], None],
        deadline: float,
        model: str,
        drafter: str,
    ) -> None:
        self.live: dict[str, Traced] = {}
        self._node = node
        self._stages = tuple(stages)
        self._tell = tell
        self._deadline = deadline
        self._model = model
        self._drafter = drafter
        self._nonces = itertools.count(1)
        self._asked: dict[int, int] = {}
        self._asked_at = 0

    def open(self, request: Request, epoch: int, foreign: Sequence[str]) -> None:
        """Trace a session from here on, or go on with it in a newer epoch; stages in `foreign` have other clocks."""
        traced = self.live.get(request.session)
        if traced is not None:
            traced.epoch, traced.missing = epoch, set(self._stages)
            return
        self.live[request.session] = Traced(
            request,
            SessionNotes(round(request.asked * 1e9), len(request.admitted.prompt)),
            epoch,
            set(self._stages),
            {name: ClockEstimate() for name in foreign},
            dict.fromkeys((self._node, *self._stages), 0),
        )

    def tell_none(self, admitted: Admitted) -> None:
        """End the trace of a request for which no node did anything."""
        nodes = tuple(TracedNode(name, complete=False, dropped=0, clock=()) for name in (self._node, *self._stages))
        self._tell(admitted.peer, TraceEnd(admitted.request, self._model, self._drafter, nodes))

    def drop(self, session: str) -> None:
        """A session ended; one that did not finish has no trace."""
        traced = self.live.get(session)
        if traced is not None and traced.alarm is None:
            del self.live[session]

    def close(self) -> None:
        """Forget everything."""
        for traced in self.live.values():
            if traced.alarm is not None:
                traced.alarm.cancel()
        self.live.clear()

    # ---- what the coordinator does -----------------------------------------------------------------------------------

    def happened(self, event: Event, scheduler: Scheduler) -> Happened:
        """To be asked before the scheduler hears of `event`."""
        at = time.perf_counter_ns()
        return Happened(event, at, bool(self.live) and was_guessed(event, scheduler))

    def decided(self, happened: Happened, commands: Sequence[Command], scheduler: Scheduler) -> None:
        """The scheduler was told what happened, and answered with `commands`."""
        event = happened.event
        if isinstance(event, SegmentReturned | TreeGrown) and event.session in self.live:
            notes = self.live[event.session].notes
            if isinstance(event, TreeGrown):
                notes.drafted(happened.at, event)
            else:
                moved = any(isinstance(each, EmitTokens) and each.session == event.session for each in commands)
                notes.returned(happened.at, event, moved=moved, guessed=happened.guessed)
        now = time.perf_counter_ns()
        for choice in choices(commands, scheduler) if self.live else ():
            if choice.send.session in self.live:
                self.live[choice.send.session].notes.chosen(now, choice)
        for command in commands:
            match command:
                case GrowTree(name) if name in self.live:
                    self.live[name].notes.asked(command)
                case EmitTokens(name, tokens) if name in self.live:
                    self.live[name].notes.emitted(now, len(tokens))
                case FinishSession(name, epoch) if name in self.live:
                    self._finish(self.live[name], epoch, now)

    def sent(self, segment: Segment, at: int, size: int) -> None:
        """A segment went into the pipe."""
        if segment.session in self.live:
            self.live[segment.session].notes.sent(at, segment.ticket, size)

    def hear_features(self, message: Features, size: int) -> None:
        if message.session in self.live and message.node in self._stages:
            stage = self._stages.index(message.node)
            self.live[message.session].notes.features(time.perf_counter_ns(), stage, message.count, size)

    # ---- what the stages send ----------------------------------------------------------------------------------------

    def hear(self, message: TraceRecords) -> None:
        """Pass on what a stage noted."""
        traced = self.live.get(message.session)
        if traced is None or message.node not in self._stages:
            return
        self._tell_part(traced, message.node, message.layouts, message.values)
        traced.dropped[message.node] += message.dropped
        if message.last and message.epoch == traced.epoch:
            traced.missing.discard(message.node)
            if traced.alarm is not None and not traced.missing:
                self._conclude(traced)

    def clock_query(self) -> ClockQuery | None:
        """A question that is to be sent at once, where stages on other machines are traced and it is time."""
        now = time.perf_counter_ns()
        if now - self._asked_at < QUERY_INTERVAL or not any(traced.clocks for traced in self.live.values()):
            return None
        nonce = next(self._nonces)
        self._asked = {each: at for each, at in self._asked.items() if each > nonce - MOST_QUERIES}
        self._asked_at = self._asked[nonce] = now
        return ClockQuery(nonce)

    def clock_answered(self, message: ClockAnswer) -> None:
        now, sent = time.perf_counter_ns(), self._asked.get(message.nonce)
        for traced in self.live.values():
            estimate = traced.clocks.get(message.node)
            if estimate is not None and sent is not None:
                estimate.add(sent, message.nanoseconds, now)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, traced: Traced, epoch: int, now: int) -> None:
        records, dropped = traced.notes.finish(now)
        traced.dropped[self._node] = dropped
        for layouts, values in parts(records):
            self._tell_part(traced, self._node, layouts, values)
        traced.epoch = epoch
        loop = asyncio.get_running_loop()
        if traced.missing:
            traced.alarm = loop.call_later(self._deadline, self._conclude, traced)
        else:
            # Behind `Finished`, which is on its way.
            traced.alarm = loop.call_later(0, self._conclude, traced)

    def _conclude(self, traced: Traced) -> None:
        assert traced.alarm is not None
        traced.alarm.cancel()
        admitted = traced.request.admitted
        self.live.pop(traced.request.session, None)
        nodes = tuple(self._read_as(traced, name) for name in (self._node, *self._stages))
        self._tell(admitted.peer, TraceEnd(admitted.request, self._model, self._drafter, nodes))

    def _read_as(self, traced: Traced, name: str) -> TracedNode:
        complete = name not in traced.missing
        samples: tuple[ClockSample, ...] = ()
        estimate = traced.clocks.get(name)
        if estimate is not None:
            clock = estimate.clock()
            complete = complete and clock is not None
            found = clock.samples if clock is not None else ()
            samples = tuple(ClockSample(each.there, each.offset, each.error) for each in found)
        return TracedNode(name, complete, min(traced.dropped[name], INT_MAX), samples)

    def _tell_part(self, traced: Traced, node: str, layouts: tuple[int, ...], values: tuple[int, ...]) -> None:
        admitted = traced.request.admitted
        self._tell(admitted.peer, TracePart(admitted.request, node, layouts, values))
