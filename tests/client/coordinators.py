"""A coordinator that says what a test tells it to, over any transport."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from flowspec.topology import Topology
from flowspec.transport.base import ClientRouter, Transport
from flowspec.wire.messages import (
    Cancel,
    Chunk,
    Failed,
    Finished,
    Generate,
    GenerationStats,
    Message,
    Started,
    Status,
    StatusQuery,
)
from flowspec.wire.parameters import SamplingParameters

STATS = GenerationStats(4, 0.5, 8.0, 0.1, 2.0, 2, 6, 2, 4, 3, 4096)
PROMPT = (5, 6, 7)


class Conversation:
    """One request as the fake coordinator sees it."""

    def __init__(self, clients: ClientRouter, peer: bytes, asked: Generate) -> None:
        self.asked = asked
        self.cancelled = asyncio.Event()
        self.over = False
        """The coordinator does not know it any more."""
        self._clients = clients
        self._peer = peer

    async def say(self, message: Message) -> None:
        self.over = self.over or isinstance(message, Finished | Failed)
        await self._clients.send(self._peer, message)

    async def start(self) -> None:
        asked = self.asked
        sampling = SamplingParameters(temperature=asked.temperature or 0.0, seed=asked.seed or 11)
        await self.say(
            Started(asked.request, "s1", asked.prompt_token_ids or PROMPT, sampling, asked.policy or "flowspec")
        )

    async def chunk(self, offset: int, text: str, *token_ids: int) -> None:
        drafted = tuple(index > 0 for index in range(len(token_ids)))
        await self.say(Chunk(self.asked.request, offset, text, token_ids, drafted))

    async def finish(self, reason: str = "length") -> None:
        await self.say(Finished(self.asked.request, reason, STATS))

    async def fail(self, error: str, message: str) -> None:
        await self.say(Failed(self.asked.request, error, message))


Answer = Callable[[Conversation], Awaitable[None]]


class FakeCoordinator:
    """Answers every request with `answer`, and status queries while `alive`."""

    def __init__(self, clients: ClientRouter, answer: Answer) -> None:
        self.alive = True
        self.ready = True
        self.draining = False
        self.asked: asyncio.Queue[Conversation] = asyncio.Queue()
        self.queried: asyncio.Queue[None] = asyncio.Queue()
        self._clients = clients
        self._answer = answer
        self._conversations: dict[str, Conversation] = {}
        self.serving: asyncio.Future[None]

    def stop(self) -> None:
        """Read nothing any more."""
        self.serving.cancel()

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as answers:
            while True:
                peer, envelope = await self._clients.receive()
                message = envelope.message
                if isinstance(message, Generate):
                    conversation = Conversation(self._clients, peer, message)
                    self._conversations[message.request] = conversation
                    self.asked.put_nowait(conversation)
                    answers.create_task(self._answer(conversation))
                elif isinstance(message, Cancel):
                    self._conversations[message.request].cancelled.set()
                elif isinstance(message, StatusQuery) and self.alive:
                    self.queried.put_nowait(None)
                    live = tuple(name for name, each in self._conversations.items() if not each.over)
                    status = Status(
                        *(message.request, self.ready, "demo", "flowspec", "ngram", 0, (), 2048),
                        requests=live,
                        draining=self.draining,
                    )
                    await self._clients.send(peer, status)


@contextlib.asynccontextmanager
async def coordinating(transport: Transport, topology: Topology, answer: Answer) -> AsyncIterator[FakeCoordinator]:
    channels = await transport.open_coordinator(topology)
    coordinator = FakeCoordinator(channels.clients, answer)
    task = coordinator.serving = asyncio.ensure_future(coordinator.serve())
    try:
        yield coordinator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channels.close()


async def two_chunks(conversation: Conversation) -> None:
    """Four tokens, "ab" and "cd"."""
    await conversation.start()
    await conversation.chunk(0, "ab", 1, 2)
    await conversation.chunk(2, "cd", 3, 4)
    await conversation.finish()


async def one_chunk_and_silence(conversation: Conversation) -> None:
    await conversation.start()
    await conversation.chunk(0, "ab", 1, 2)
    await conversation.cancelled.wait()
