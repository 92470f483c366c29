"""Channels that a test opens, closed when it ends; and waiting with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from flowspec.topology import Topology
from flowspec.transport.base import (
    ClientChannel,
    CoordinatorChannels,
    ListenerChannels,
    Receiver,
    Sender,
    StageChannels,
    Transport,
)
from flowspec.wire.messages import Message

T = TypeVar("T")
SECONDS = 10.0


async def soon(awaitable: Awaitable[T]) -> T:
    """The result, within a deadline."""
    async with asyncio.timeout(SECONDS):
        return await awaitable


async def eventually(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Act until it has the wanted effect, within a deadline."""

    async def act() -> None:
        while not await attempt():  # noqa: ASYNC110  (acting again is the point; nothing announces the effect)
            await asyncio.sleep(0)

    await soon(act())


@asynccontextmanager
async def repeating(sender: Sender, message: Message) -> AsyncIterator[None]:
    """Send again and again: a subscriber joins late, and nobody tells when."""

    async def repeat() -> None:
        while True:
            await sender.send(message)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def hears(receiver: Receiver, sender: Sender, message: Message) -> None:
    """Wait until what `sender` sends arrives at `receiver`."""
    async with repeating(sender, message):
        while (await soon(receiver.receive())).message != message:
            pass


class Opened:
    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._open: list[StageChannels | CoordinatorChannels | ListenerChannels | ClientChannel] = []

    async def coordinator(self, transport: Transport) -> CoordinatorChannels:
        channels = await transport.open_coordinator(self.topology)
        self._open.append(channels)
        return channels

    async def stage(self, transport: Transport, name: str) -> StageChannels:
        channels = await transport.open_stage(self.topology, name)
        self._open.append(channels)
        return channels

    async def listener(self, transport: Transport) -> ListenerChannels:
        channels = await transport.open_listener(self.topology)
        self._open.append(channels)
        return channels

    async def client(self, transport: Transport) -> ClientChannel:
        channel = await transport.connect_client(self.topology.client_address)
        self._open.append(channel)
        return channel

    async def close(self) -> None:
        for channels in self._open:
            await soon(channels.close(0))
