"""Serves clients: takes requests, streams what is final, tells how it ended.

It knows requests, sessions and text. What runs in the pipe it only hears of through the scheduler's commands, and what
it wants it says as events (`apply`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from flowspec.errors import FlowspecError
from flowspec.model.text import TextStream
from flowspec.roles.admission import Admission
from flowspec.roles.request import Admitted, Request
from flowspec.schedule.events import EmitTokens, Event, FinishSession, SessionRequested, SessionStopped
from flowspec.transport.base import ClientRouter
from flowspec.wire.messages import Cancel, Failed, Generate, Message, Started, Status, StatusQuery

logger = logging.getLogger(__name__)


class FrontDesk:
    """All requests of one coordinator.

    `check_open(live)` raises when no request can be taken now; `begin(admitted, session)` prepares the drafter
    and returns the taps that it reads, None when there is no drafter for this session;
    `end(session)` is told of every session that ends, however it ends.
    """

    def __init__(
        self,
        admission: Admission,
        clients: ClientRouter,
        *,
        stages: tuple[str, ...],
        apply: Callable[[Event], None],
        check_open: Callable[[int], None],
        begin: Callable[[Admitted, str], tuple[int, ...] | None],
        end: Callable[[str], None],
        status: Callable[[str], Status],
    ) -> None:
        self.admission = admission
        self.requests: dict[str, Request] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self._clients = clients
        self._stages = stages
        self._apply = apply
        self._check_open = check_open
        self._begin = begin
        self._end = end
        self._status = status
        self._session_of: dict[tuple[bytes, str], str] = {}
        self._outbox: asyncio.Queue[tuple[bytes, Message]] = asyncio.Queue()

    async def read(self) -> None:
        """Task: hear the clients."""
        while True:
            peer, envelope = await self._clients.receive()
            message = envelope.message
            if isinstance(message, Generate):
                self._on_generate(peer, message)
            elif isinstance(message, Cancel):
                session = self._session_of.get((peer, message.request))
                if session is not None:
                    self._apply(SessionStopped(session, "cancelled"))
            elif isinstance(message, StatusQuery):
                self._outbox.put_nowait((peer, self._status(message.request)))

    async def write(self) -> None:
        """Task: send what is due; a client that is gone or does not keep up loses its requests, nobody else does."""
        while True:
            peer, message = await self._outbox.get()
            if not await self._clients.send(peer, message):
                for session in [name for name, request in self.requests.items() if request.admitted.peer == peer]:
                    logger.warning("session %s: the client is gone or does not keep up", session)
                    self._apply(SessionStopped(session, "cancelled"))

    async def flush(self) -> None:
        """Send what is still in the outbox, without the task."""
        while not self._outbox.empty():
            peer, message = self._outbox.get_nowait()
            await self._clients.send(peer, message)

    def _on_generate(self, peer: bytes, message: Generate) -> None:
        asked = time.perf_counter()
        session = secrets.token_hex(6)
        try:
            self._check_open(len(self.requests))
            admitted = self.admission.admit(message, peer)
            taps = self._begin(admitted, session)
        except FlowspecError as error:
            self._outbox.put_nowait((peer, Failed(message.request, type(error).__name__, str(error))))
            return
        text = TextStream(self.admission.tokenizer, admitted.stop, self.admission.eos, admitted.prompt)
        self.requests[session] = Request(
            admitted, session, text, asked, taps=taps or (), unacknowledged=set(self._stages)
        )
        self._session_of[peer, admitted.request] = session
        self.idle.clear()
        started = Started(message.request, session, admitted.prompt, admitted.sampling, admitted.policy)
        self._outbox.put_nowait((peer, started))
        self._apply(
            SessionRequested(
                session,
                admitted.prompt,
                admitted.policy,
                admitted.max_new_tokens,
                admitted.eos,
                drafter=taps is not None,
                features=bool(taps),
            )
        )

    def emit(self, command: EmitTokens) -> None:
        request = self.requests.get(command.session)
        if request is None:
            return
        chunk = request.push(command.tokens, command.drafted, time.perf_counter())
        if chunk is not None:
            self._tell(request, chunk)
        if request.stopped:
            self._apply(SessionStopped(command.session, "stop"))

    def finish(self, command: FinishSession) -> None:
        request = self._forget(command.session)
        if request is not None:
            rest = request.rest()
            if rest is not None:
                self._tell(request, rest)
            self._tell(request, request.finished(command))

    def fail(self, session: str, error: FlowspecError) -> None:
        """End a session with an error, which its client hears."""
        request = self._forget(session)
        if request is not None:
            self._tell(request, Failed(request.admitted.request, type(error).__name__, str(error)))
            self._apply(SessionStopped(session, "failed"))

    def _tell(self, request: Request, message: Message) -> None:
        self._outbox.put_nowait((request.admitted.peer, message))

    def _forget(self, session: str) -> Request | None:
        request = self.requests.pop(session, None)
        if request is not None:
            self._session_of.pop((request.admitted.peer, request.admitted.request), None)
            self._end(session)
            if not self.requests:
                self.idle.set()
        return request
