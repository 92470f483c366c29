"""One request of a client: what comes back, and the iteration over it.

Knows no channel; a `Carrier`, the client, carries its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flowspec.errors import FlowspecError, PipelineError, RequestError, WireError
from flowspec.stopwatch import Stopwatch
from flowspec.tracing.assembly import NodeRecords, assemble
from flowspec.tracing.clocks import Clock, Sample
from flowspec.tracing.records import joined
from flowspec.tracing.trace import Trace
from flowspec.wire.messages import (
    Chunk,
    Finished,
    Generate,
    GenerationStats,
    Message,
    Started,
    Status,
    TracedNode,
    TraceEnd,
    TracePart,
)

Inbox = asyncio.Queue[Message | FlowspecError]
"""What arrived for one request. Needs no bound of its own: the messages of a request end with its last token."""

TRACE_SECONDS = 30.0
"""How long the trace of a finished request is waited for."""


class Carrier(Protocol):
    """What a stream needs of its client."""

    def enlist(self, request: str) -> Inbox: ...

    def dismiss(self, request: str) -> None: ...

    async def send(self, message: Message) -> None: ...

    async def cancel(self, request: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request gave. `finish_reason` and `stats` are None in the `partial` of an error."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str | None
    seed: int | None
    stats: GenerationStats | None
    """Where `stats.restarts` is not 0 there was a break, which its times include; where `stats.resumed` is not 0, what
    it counts is of the tokens behind those."""
    trace: Trace | None = None
    """What happened at all nodes, for a request that asked for it and ended well. None when it did not come in time."""


class Stream:
    """One request: iterate to send it and receive its chunks. Leaving the iteration early cancels the request.

    When the coordinator turns out not to know the request any more, since it was started again, the request is sent
    once more, with the tokens that have come: the stream goes on behind them, with the same seed, so as if nothing had
    been.
    `started` is known from the first chunk on, `finished` after the last; `generation` is what has come so far.
    A stream may be iterated once.
    """

    def __init__(self, client: Carrier, request: Generate) -> None:
        self._client = client
        self._request = request
        self._iterated = False
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._ended = False
        """The text behind the last token has come."""
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.trace: Trace | None = None
        self._parts: list[TracePart] = []
        self._stopwatch: Stopwatch | None = None
        """Since the request was sent."""

    @property
    def generation(self) -> Generation:
        return Generation(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self.started.prompt_token_ids if self.started else (),
            finish_reason=self.finished.finish_reason if self.finished else None,
            seed=self.started.sampling.seed if self.started else None,
            stats=self._stats,
            trace=self.trace,
        )

    @property
    def _stats(self) -> GenerationStats | None:
        if self.finished is None or self._stopwatch is None:
            return None
        return self._stopwatch.whole(self.finished.stats)

    def __aiter__(self) -> AsyncGenerator[Chunk, None]:
        if self._iterated:
            raise RequestError("a stream can be iterated only once")
        self._iterated = True
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        inbox = self._client.enlist(self._request.request)
        over = False
        watch = self._stopwatch = Stopwatch(asked=time.monotonic())
        try:
            await self._client.send(self._request)
            while True:
                message = await inbox.get()
                if isinstance(message, Chunk):
                    self._check_offset(message)
                    if not message.token_ids:
                        if self._ended:  # it came before the request was resumed
                            continue
                        self._ended = True
                    else:
                        watch.tokens_came(time.monotonic())
                    self._text.append(message.text)
                    self._token_ids.extend(message.token_ids)
                    yield message
                elif isinstance(message, Started):
                    self.started = message
                elif isinstance(message, Finished):
                    over = True
                    self.finished = message
                    if self._request.trace:
                        await self._receive_trace(inbox)
                    return
                elif isinstance(message, TracePart):
                    self._parts.append(message)
                elif isinstance(message, Status) and message.ready:
                    watch.resume(time.monotonic())
                    inbox = await self._resume()
                elif isinstance(message, FlowspecError):
                    over = True
                    message.partial = self.generation
                    raise message
        finally:
            self._client.dismiss(self._request.request)
            if not over:
                await self._client.cancel(self._request.request)

    async def _resume(self) -> Inbox:
        """Ask again for what is missing, of a coordinator that does not know the request."""
        self._client.dismiss(self._request.request)
        self._request = replace(self._request, request=secrets.token_hex(8))
        if self.started is not None:
            self._request = continued(self._request, self.started, tuple(self._token_ids))
        self._parts.clear()
        inbox = self._client.enlist(self._request.request)
        await self._client.send(self._request)
        return inbox

    async def _receive_trace(self, inbox: Inbox) -> None:
        """Wait for what is left of the trace; whatever befalls it, the generation is complete without it."""
        with contextlib.suppress(TimeoutError, WireError):
            async with asyncio.timeout(TRACE_SECONDS):
                while not isinstance(message := await inbox.get(), TraceEnd | FlowspecError):
                    if isinstance(message, TracePart):
                        self._parts.append(message)
            if isinstance(message, TraceEnd):
                self.trace = trace_of(message, self._parts, self.started, self.finished)
        self._parts.clear()

    def _check_offset(self, chunk: Chunk) -> None:
        if chunk.offset != len(self._token_ids):
            error = PipelineError(
                f"a chunk begins at token {chunk.offset}, but {len(self._token_ids)} tokens have come before it"
            )
            error.partial = self.generation
            raise error


def continued(request: Generate, started: Started, token_ids: tuple[int, ...]) -> Generate:
    """`request` as it was understood when it started, with what has come of its output."""
    sampling = started.sampling
    return replace(
        request,
        prompt=None,
        prompt_token_ids=started.prompt_token_ids,
        chat=False,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        policy=started.policy,
        resume=token_ids,
    )


def trace_of(end: TraceEnd, parts: Sequence[TracePart], started: Started | None, finished: Finished | None) -> Trace:
    """The trace whose `parts` came. Raises `MalformedMessage` when they are no records."""
    nodes = {node.name: _records_of(node) for node in end.nodes}
    for part in parts:
        if part.node in nodes:
            nodes[part.node].records += joined(part.layouts, part.values)
    session = started.session if started is not None else ""
    request = {
        "session": session,
        "policy": started.policy if started is not None else "",
        "temperature": started.sampling.temperature if started is not None else 0.0,
        "seed": started.sampling.seed if started is not None else 0,
        "finish_reason": finished.finish_reason if finished is not None else "",
    }
    return assemble(session, list(nodes.values()), {"model": end.model, "drafter": end.drafter, "requests": [request]})


def _records_of(node: TracedNode) -> NodeRecords:
    samples = tuple(Sample(each.there, each.offset, each.error) for each in node.clock)
    return NodeRecords(node.name, dropped=node.dropped, clock=Clock(samples), complete=node.complete)
