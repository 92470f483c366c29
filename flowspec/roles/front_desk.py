"""Serves clients: takes requests, lets them wait their turn, streams what is final, tells how it ended.

A prompt that is text waits for a thread that makes tokens of it, one after the other; then the request waits for its
session, or begins at once. The desk knows requests, sessions and text. What runs in the pipe it only hears of through
the scheduler's commands, and what it wants it says as events (`apply`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from flowspec.errors import FlowspecError, Overloaded, WireError
from flowspec.model.text import TextStream
from flowspec.roles.admission import Admission
from flowspec.roles.counts import Counts
from flowspec.roles.reading_room import ReadingRoom, Unread
from flowspec.roles.request import Admitted, Request
from flowspec.roles.waiting_room import Waiting, WaitingRoom
from flowspec.runtime.compute import ComputeThread
from flowspec.schedule.events import EmitTokens, Event, FinishSession, SessionRequested, SessionStopped
from flowspec.transport.base import ClientRouter
from flowspec.wire.codec import MAX_ITEMS
from flowspec.wire.messages import (
    Cancel,
    Diagnose,
    Failed,
    Finished,
    Generate,
    GenerationStats,
    Message,
    Started,
    Status,
    StatusQuery,
)

logger = logging.getLogger(__name__)


class FrontDesk:
    """All requests of one coordinator.

    At most `sessions` are served at a time, `waiting` more wait their turn; of so many together a client may have the
    prompts waiting to be tokenized. `check_open()` raises when no request can
    be taken now; `begin(admitted, session)` prepares the drafter and returns the taps that it reads, None when there is
    no drafter for this session; with `recalls` that drafter looks text up. `end(session)` is told of every session that
    ends, however it ends; `soon(act)` lets the event loop call `act()`.
    """

    def __init__(
        self,
        admission: Admission,
        clients: ClientRouter,
        *,
        sessions: int,
        waiting: int,
        apply: Callable[[Event], None],
        check_open: Callable[[], None],
        begin: Callable[[Admitted, str], tuple[int, ...] | None],
        end: Callable[[str], None],
        status: Callable[[str], Status],
        soon: Callable[[Callable[[], None]], object],
        recalls: bool = False,
    ) -> None:
        self.admission = admission
        self.requests: dict[str, Request] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.waiting = WaitingRoom(waiting, sessions)
        self.reading = ReadingRoom(sessions + waiting)
        self._clients = clients
        self._sessions = sessions
        self._apply = apply
        self._check_open = check_open
        self._begin = begin
        self._end = end
        self._status = status
        self._soon = soon
        self._recalls = recalls
        self.counts = Counts()
        self.hold: Callable[[], bool] = lambda: False
        """While it is true nobody begins: whoever comes waits in line. `call_next` is called when that is over."""
        self.diagnose: Callable[[bytes, Diagnose], None] = lambda peer, message: None
        """Called for every `Diagnose`; set by the owner."""
        self.untraced: Callable[[Admitted], None] = lambda admitted: None
        """Called for a request that wants a trace and is over before anything was done; set by the owner."""
        self._session_of: dict[tuple[bytes, str], str] = {}
        self._outbox: asyncio.Queue[tuple[bytes, Message]] = asyncio.Queue()
        self._prompt_came = asyncio.Event()

    @property
    def queued(self) -> int:
        """Requests that were taken and have not begun."""
        return len(self.waiting) + len(self.reading)

    async def read(self) -> None:
        """Task: hear the clients."""
        while True:
            peer, envelope = await self._clients.receive()
            message = envelope.message
            if isinstance(message, Generate):
                self._on_generate(peer, message)
            elif isinstance(message, Cancel):
                self._cancel(peer, message.request)
            elif isinstance(message, StatusQuery):
                self.tell(peer, replace(self._status(message.request), requests=self._requests_of(peer)))
            elif isinstance(message, Diagnose):
                self.diagnose(peer, message)

    async def read_prompts(self, thread: ComputeThread) -> None:
        """Task: make tokens of prompts, on `thread`."""
        while True:
            unread = self.reading.begin()
            if unread is None:
                self._prompt_came.clear()
                await self._prompt_came.wait()
                continue
            prompt: tuple[int, ...] | FlowspecError
            try:
                prompt = await thread.run(self.admission.read, unread.asked)
            except FlowspecError as error:
                prompt = error
            self.prompt_read(unread, prompt)

    async def write(self) -> None:
        """Task: send what is due; a client that is gone or does not keep up loses its requests, nobody else does."""
        while True:
            peer, message = await self._outbox.get()
            if not await self._sent(peer, message):
                self.waiting.leave(peer)
                self.reading.leave(peer)
                self._note_idle()
                for session in [name for name, request in self.requests.items() if request.admitted.peer == peer]:
                    logger.warning("session %s: the client is gone or does not keep up", session)
                    self._apply(SessionStopped(session, "cancelled"))

    def tell(self, peer: bytes, message: Message) -> None:
        """Send `message` to a client, behind what is due already."""
        self._outbox.put_nowait((peer, message))

    async def flush(self) -> None:
        """Send what is still in the outbox, without the task."""
        while not self._outbox.empty():
            await self._sent(*self._outbox.get_nowait())

    async def _sent(self, peer: bytes, message: Message) -> bool:
        """Whether it went to its client. What cannot be encoded, as it repeats what a client sent, does not."""
        try:
            return await self._clients.send(peer, message)
        except WireError as error:
            logger.error("a message for a client cannot be sent, and its requests end: %s", error)
            return False

    def _on_generate(self, peer: bytes, message: Generate) -> None:
        unread = Unread(message, peer, time.perf_counter())
        try:
            self._check_open()
            self.admission.check(message)
            self._check_room(peer)
            if message.prompt is None:
                self._take(unread, self.admission.read(message))
                return
            if self.reading.full(peer):
                raise Overloaded(
                    f"{len(self.reading)} prompts wait to be tokenized",
                    retry_after=self.waiting.retry_after,
                    hint=f"ask again in {self.waiting.retry_after:g} s, or send token ids",
                )
        except FlowspecError as error:
            self._refuse(peer, message.request, error)
            return
        self.reading.enter(unread)
        self.idle.clear()
        self._prompt_came.set()

    def prompt_read(self, unread: Unread, prompt: tuple[int, ...] | FlowspecError) -> None:
        """A prompt has been made tokens of, or cannot be. Nothing happens when its request is over already."""
        if not self.reading.end(unread):
            return
        try:
            if isinstance(prompt, FlowspecError):
                raise prompt
            self._take(unread, prompt)
        except FlowspecError as error:
            self._refuse(unread.peer, unread.asked.request, error)
        self._note_idle()

    def _take(self, unread: Unread, prompt: tuple[int, ...]) -> None:
        """Let a request begin, or wait for its session. Raises what speaks against both."""
        waiting = Waiting(self.admission.admit(unread.asked, unread.peer, prompt), unread.since)
        self._check_room(unread.peer)
        if self._begins_at_once:
            self._start(waiting)
        else:
            self.waiting.enter(waiting)
            self.idle.clear()

    @property
    def _begins_at_once(self) -> bool:
        return len(self.requests) < self._sessions and not self.waiting and not self.hold()

    def _check_room(self, peer: bytes) -> None:
        """Raise `Overloaded` when one more request of this client could neither begin nor wait."""
        if len(self.requests) + self.queued >= MAX_ITEMS and len(self._requests_of(peer)) >= MAX_ITEMS:
            raise Overloaded(
                f"this client has {MAX_ITEMS} requests, as many as a status can name",
                retry_after=self.waiting.retry_after,
                hint="ask for more when some of them are over, or with another client",
            )
        if not self._begins_at_once and self.waiting.full:
            raise Overloaded(
                f"{len(self.requests)} requests run (limits.sessions), {len(self.waiting)} wait (limits.waiting)",
                retry_after=self.waiting.retry_after,
                hint=f"ask again in {self.waiting.retry_after:g} s, or raise these limits in the topology",
            )

    def _refuse(self, peer: bytes, request: str, error: FlowspecError) -> None:
        self.counts.failed += 1
        self.tell(peer, failed(request, error))

    def call_next(self) -> None:
        """Let those begin who waited, as far as there is room now."""
        while self.waiting and len(self.requests) < self._sessions and not self.hold():
            waiting = self.waiting.next()
            try:
                self._start(waiting)
            except FlowspecError as error:
                self._refuse(waiting.admitted.peer, waiting.admitted.request, error)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self.requests and not self.queued:
            self.idle.set()

    def _start(self, waiting: Waiting) -> None:
        admitted, session = waiting.admitted, secrets.token_hex(6)
        text = TextStream(self.admission.tokenizer, admitted.stop, self.admission.eos, admitted.prompt)
        request = Request(admitted, session, text, waiting.asked)
        over = request.over
        taps = None if over else self._begin(admitted, session)
        self._tell(request, Started(admitted.request, session, admitted.prompt, admitted.sampling, admitted.policy))
        if over is not None:
            self._tell_end(request, FinishSession(session, 0, over, 0, 0, 0, 0, 0))
            if admitted.trace:
                self.untraced(admitted)
            return
        request.taps = taps or ()
        self.requests[session] = request
        self._session_of[admitted.peer, admitted.request] = session
        self.idle.clear()
        self._apply(
            SessionRequested(
                session,
                admitted.prompt,
                admitted.policy,
                admitted.max_new_tokens,
                admitted.eos,
                drafter=taps is not None,
                features=bool(taps),
                recalls=self._recalls,
                options=admitted.options,
                resume=admitted.resume,
            )
        )

    def emit(self, command: EmitTokens) -> None:
        request = self.requests.get(command.session)
        if request is None:
            return
        chunk = request.push(command.tokens, command.drafted, time.perf_counter())
        if chunk is not None:
            self.counts.tokens += len(chunk.token_ids)
            self._tell(request, chunk)
        if request.stopped:
            self._apply(SessionStopped(command.session, "stop"))

    def finish(self, command: FinishSession) -> None:
        request = self._forget(command.session)
        if request is not None:
            self._tell_end(request, command)

    def _tell_end(self, request: Request, end: FinishSession) -> None:
        rest = request.rest()
        if rest is not None:
            self._tell(request, rest)
        self.counts.finished += 1
        self.counts.drafted += end.drafted
        self.counts.accepted += request.drafted_tokens
        self.counts.verdicts += end.verdicts
        self._tell(request, request.finished(end))

    def _cancel(self, peer: bytes, name: str) -> None:
        session = self._session_of.get((peer, name))
        if session is not None:
            self._apply(SessionStopped(session, "cancelled"))
        for waiting in self.waiting.leave(peer, name):
            self.tell(peer, cancelled(name, len(waiting.admitted.resume)))
        for unread in self.reading.leave(peer, name):
            self.tell(peer, cancelled(name, len(unread.asked.resume)))
        self._note_idle()

    def _requests_of(self, peer: bytes) -> tuple[str, ...]:
        """Those of a client that run or wait."""
        live = [name for owner, name in self._session_of if owner == peer]
        waiting = (each.admitted.request for each in self.waiting if each.admitted.peer == peer)
        return (*live, *waiting, *(each.asked.request for each in self.reading if each.peer == peer))

    def fail_all(self, error: FlowspecError) -> None:
        """End everything that runs or waits with an error."""
        for waiting in self.waiting.empty():
            self._refuse(waiting.admitted.peer, waiting.admitted.request, error)
        for unread in self.reading.empty():
            self._refuse(unread.peer, unread.asked.request, error)
        for session in list(self.requests):
            self.fail(session, error)

    def fail(self, session: str, error: FlowspecError) -> None:
        """End a session with an error, which its client hears."""
        request = self._forget(session)
        if request is not None:
            self.counts.failed += 1
            self._tell(request, failed(request.admitted.request, error))
            self._apply(SessionStopped(session, "failed"))

    def _tell(self, request: Request, message: Message) -> None:
        self._outbox.put_nowait((request.admitted.peer, message))

    def _forget(self, session: str) -> Request | None:
        request = self.requests.pop(session, None)
        if request is not None:
            name = request.admitted.peer, request.admitted.request
            # A client may have given the name to another request meanwhile.
            if self._session_of.get(name) == session:
                del self._session_of[name]
            self._end(session)
            self.waiting.lasted(time.perf_counter() - request.asked)
            # Not at once: whoever ends a session has more to say about it before the next one begins.
            self._soon(self.call_next)
        return request


def cancelled(request: str, tokens: int) -> Finished:
    """The end of a request that never began here; its client has so many tokens of its output."""
    return Finished(request, "cancelled", GenerationStats(tokens, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, resumed=tokens))


def failed(request: str, error: FlowspecError) -> Failed:
    """An error as a client hears it."""
    return Failed(request, type(error).__name__, str(error), error.retry_after)
