"""The asyncio client of a running pipeline: text in, a stream of final tokens out.

    async with Client("tcp://127.0.0.1:5700") as client:
        async for chunk in client.stream("def add(", max_new_tokens=64):
            print(chunk.text, end="")

Many requests may run at once over one client; one task reads the channel and hands each message to its request. The
client loads neither torch nor a tokenizer, decides nothing about tokens, and never waits without an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack

from flowspec.errors import (
    CoordinatorStopped,
    FlowspecError,
    PeerTimeout,
    PipelineError,
    TransportError,
    error_named,
)
from flowspec.options import Options, request_of
from flowspec.stream import Generation, Inbox, Stream
from flowspec.wire.messages import Cancel, Diagnose, Diagnosis, Failed, Finished, Generate, Message, Status, StatusQuery

if TYPE_CHECKING:
    from flowspec.transport.base import ClientChannel

PING_SECONDS = 1.0
"""Between two questions whether the coordinator lives and knows the requests that run."""

FORGOTTEN_SECONDS = 0.2
"""The same while it does not know one of them: how soon the next coordinator can be asked to go on."""

Answer = TypeVar("Answer", Status, Diagnosis)

__all__ = ["Client", "Generation", "Options", "Stream"]


class Connector(Protocol):
    """The part of a transport that a client needs."""

    async def connect_client(self, address: str) -> ClientChannel: ...


class Client:
    """A connection to a coordinator, as an async context manager.

    `connect_timeout`: seconds to wait for the coordinator's first answer. `silence_timeout`: seconds without a sign of
    life, asked for while requests run, after which the coordinator counts as lost. Until then a coordinator that was
    started again, after a failure or after it was told to stop, is found, and what ran goes on there, behind the tokens
    that have come. Both raise `PeerTimeout`, which names the address; a request that breaks off raises with the tokens
    so far in `error.partial`. `key`: path of this client's key file, for a pipeline with keys (see docs/security.md).
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float = 10.0,
        silence_timeout: float = 30.0,
        close_timeout: float = 2.0,
        key: str | os.PathLike[str] | None = None,
        transport: Connector | None = None,
    ) -> None:
        self.address = address
        self._key = key
        self._connect_timeout = connect_timeout
        self._silence_timeout = silence_timeout
        self._close_timeout = close_timeout
        self._transport = transport
        self._channel: ClientChannel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._inboxes: dict[str, Inbox] = {}
        self._running: set[str] = set()
        """Requests that were sent, and whose last message has not come."""
        self._forgotten: dict[str, float] = {}
        """Since when the coordinator is known not to know a request."""
        self._pings: dict[str, frozenset[str]] = {}
        """Status queries under way, with what was running when each was sent."""
        self._heard_at = 0.0
        self._asked = asyncio.Event()
        self._broken: FlowspecError | None = None

    async def __aenter__(self) -> Self:
        transport = self._transport
        if transport is None:
            from flowspec.transport.access import client_key
            from flowspec.transport.zeromq import ZeroMQTransport

            transport = ZeroMQTransport(client_key=None if self._key is None else client_key(self._key))
        self._channel = await transport.connect_client(self.address)
        self._heard_at = time.monotonic()
        self._spawn(self._read(self._channel), "read")
        try:
            await self.status(timeout=self._connect_timeout)
        except BaseException:
            await self.close()
            raise
        self._spawn(self._watch(), "watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> Stream:
        """A request for a continuation of `prompt` (or of `prompt_token_ids`); it is sent when iteration begins.

        Raises `RequestError` for options that are none, of a wrong type or out of every range.
        """
        return Stream(self, request_of(prompt, options))

    async def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """The whole continuation at once; the options are those of `stream`."""
        stream = self.stream(prompt, **options)
        async for _ in stream:
            pass
        return stream.generation

    async def status(self, *, timeout: float | None = None) -> Status:
        """What the coordinator knows of its pipeline; `PeerTimeout` without an answer within `timeout` seconds."""
        query = StatusQuery(request=secrets.token_hex(8))
        return await self._ask(query, Status, self._connect_timeout if timeout is None else timeout)

    async def diagnose(self, *, payload: int = 2**20, timeout: float = 60.0) -> Diagnosis:
        """What every node says of itself, and how fast the links between them are, measured with `payload` bytes."""
        return await self._ask(Diagnose(request=secrets.token_hex(8), payload=payload), Diagnosis, timeout)

    async def _ask(self, query: StatusQuery | Diagnose, kind: type[Answer], seconds: float) -> Answer:
        inbox = self.enlist(query.request)
        try:
            async with asyncio.timeout(seconds):
                await self.send(query)
                answer = await inbox.get()
        except TimeoutError:
            raise PeerTimeout(f"the coordinator at {self.address}", seconds, hint=self._unanswered()) from None
        finally:
            self.dismiss(query.request)
        if isinstance(answer, FlowspecError):
            raise answer
        if not isinstance(answer, kind):
            raise PipelineError(f"the coordinator at {self.address} answered a {query.kind} with {answer.kind!r}")
        return answer

    def _unanswered(self) -> str:
        asked = "does it know this key" if self._key is not None else "does it ask for a key (--key)"
        return f"is a pipeline running there (`flowspec up`), and {asked}?"

    async def close(self) -> None:
        """Break off what runs, within `close_timeout` seconds. Safe to call twice."""
        if self._channel is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
                for request in list(self._inboxes):
                    await self.cancel(request)
        channel, self._channel = self._channel, None
        if channel is None:  # closed by somebody else meanwhile
            return
        self._fail_all(TransportError(f"the client of {self.address} was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=self._close_timeout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
                await channel.close()

    # ---- what streams use (`flowspec.stream.Carrier`) ----

    def enlist(self, request: str) -> Inbox:
        if self._broken is not None:
            raise _twin(self._broken)
        if self._channel is None:
            raise _not_connected(self.address)
        if not self._inboxes:
            self._heard_at = time.monotonic()
        self._asked.set()
        inbox = self._inboxes[request] = asyncio.Queue()
        return inbox

    def dismiss(self, request: str) -> None:
        self._inboxes.pop(request, None)
        self._running.discard(request)
        self._forgotten.pop(request, None)

    async def send(self, message: Message) -> None:
        if self._channel is None:
            raise _not_connected(self.address)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._channel.send(message)
                if isinstance(message, Generate) and message.request in self._inboxes:
                    self._running.add(message.request)
        except TimeoutError:
            raise PeerTimeout(
                f"the coordinator at {self.address}", self._connect_timeout, waiting_for="room for a message"
            ) from None

    async def cancel(self, request: str) -> None:
        if self._channel is not None and self._broken is None:
            with contextlib.suppress(FlowspecError):
                await self.send(Cancel(request=request))

    # ---- tasks ----

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"client of {self.address}: {name}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """An error that ends it ends what runs: nobody else would hear of anything any more."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FlowspecError):
            self._fail_all(error)
        elif error is not None:
            self._fail_all(PipelineError(f"{task.get_name()}: {type(error).__name__}: {error}"))

    async def _read(self, channel: ClientChannel) -> None:
        while True:
            try:
                message: Any = (await channel.receive()).message
            except FlowspecError:
                raise
            except Exception as error:
                raise TransportError(f"{type(error).__name__}: {error}") from error
            self._heard_at = time.monotonic()
            request = getattr(message, "request", "")
            if _goes_on(message) and request in self._inboxes:
                # No end: it goes on at the next coordinator, as if this one had said nothing.
                self._forgotten.setdefault(request, time.monotonic())
                continue
            if isinstance(message, Finished | Failed):
                self._running.discard(request)
            inbox = self._inboxes.get(request)
            if inbox is not None:
                inbox.put_nowait(
                    error_named(message.error, message.message, message.retry_after)
                    if isinstance(message, Failed)
                    else message
                )
            elif isinstance(message, Status):
                self._notice_forgotten(message)

    def _notice_forgotten(self, status: Status) -> None:
        """What ran when the coordinator was asked, and is unknown to it, will get no answer: its stream is told so.

        Its pipe may need a while to be whole, but no longer than a coordinator may be silent.
        """
        for request in (self._pings.pop(status.request, frozenset()) & self._running) - set(status.requests):
            since = self._forgotten.setdefault(request, time.monotonic())
            if status.ready and not status.draining:
                self._running.discard(request)  # it is told once, whenever its stream comes to read that
                self._inboxes[request].put_nowait(status)
            elif time.monotonic() - since > self._silence_timeout:
                self._running.discard(request)
                self._inboxes[request].put_nowait(_not_served(self.address, self._silence_timeout, status.draining))

    async def _watch(self) -> None:
        """While requests run, ask for a sign of life: every second, or in every third of the silence deadline."""
        while True:
            await self._asked.wait()
            interval = min(FORGOTTEN_SECONDS if self._forgotten else PING_SECONDS, self._silence_timeout / 3)
            asleep_until = time.monotonic() + interval
            await asyncio.sleep(interval)
            # A process that was held up has heard nobody meanwhile, which says nothing about the coordinator.
            self._heard_at += time.monotonic() - asleep_until
            if not self._inboxes:
                self._asked.clear()
                self._pings.clear()
                continue
            silent = time.monotonic() - self._heard_at
            if silent >= self._silence_timeout:
                self._fail_all(_lost(self.address, self._silence_timeout))
                return
            query = StatusQuery(request=secrets.token_hex(8))
            self._pings[query.request] = frozenset(self._running)
            with contextlib.suppress(FlowspecError):
                await self.send(query)

    def _fail_all(self, error: FlowspecError) -> None:
        """The first error is the one that counts."""
        self._broken = self._broken or error
        for inbox in self._inboxes.values():
            inbox.put_nowait(_twin(error))
        self._inboxes.clear()
        self._running.clear()


def _twin(error: FlowspecError) -> FlowspecError:
    """A copy: each request gets an error of its own, because `partial` differs."""
    twin = type(error).__new__(type(error))
    FlowspecError.__init__(twin, error.message)
    twin.__dict__.update(error.__dict__)
    return twin


def _not_connected(address: str) -> TransportError:
    return TransportError(
        f"the client of {address} is not connected",
        hint="use it inside `async with flowspec.Client(...) as client:`",
    )


def _goes_on(message: Message) -> bool:
    """Whether this is what a coordinator says that was told to stop."""
    return isinstance(message, Failed) and message.error == CoordinatorStopped.__name__


def _not_served(address: str, seconds: float, draining: bool) -> PipelineError:
    """The coordinator lives, and could not take a request that it, or the one before it, does not serve any more."""
    if draining:
        return CoordinatorStopped(
            f"the coordinator at {address} is stopping, and no other has come within {seconds:g} s",
            hint="the same prompt, seed and options continue the same text on the next one",
        )
    return PipelineError(
        f"the coordinator at {address} was started again, and its pipe was not ready within {seconds:g} s",
        hint="the same prompt, seed and options continue the same text when it is",
    )


def _lost(address: str, seconds: float) -> PeerTimeout:
    return PeerTimeout(
        f"the coordinator at {address}",
        seconds,
        waiting_for="sign of life",
        hint="the same prompt, seed and options continue the same text on another coordinator",
    )
