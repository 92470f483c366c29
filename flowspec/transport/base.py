"""What every transport offers: channels that carry messages, bounded and counted. Knows no socket and no thread.

Contracts that hold for all of them:
    send      returns the bytes put on the wire; waits when the channel is full (pipes), or drops (broadcasts).
              The tensors belong to the channel from then on: nobody may write to them again.
    receive   returns only what `frames.decode` accepts; the rest is counted, logged once per peer and skipped.
              One task per channel receives, and is not cancelled except to close: a message in its hands is lost.
    close     idempotent, with a deadline; whoever waits in send or receive gets `ChannelClosed`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flowspec.errors import TransportError, WireError
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import Message

if TYPE_CHECKING:
    from torch import Tensor

    from flowspec.topology import Topology

CLOSE_SECONDS = 0.5
"""How long close lets what was sent leave."""

MAX_PEERS_COUNTED = 256


class ChannelClosed(TransportError):
    """The channel was closed, here, while something waited on it or before it was used."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Counts since the channel was opened."""

    messages: int
    bytes: int
    rejected: int
    """Messages that arrived and could not be understood."""
    dropped: int
    """Messages that were not sent because the peer was gone or full (broadcasts and clients only)."""
    queued: int
    """Messages that wait here; over ZeroMQ only the senders that wait for room are known."""
    capacity: int
    """Most messages that the channel holds at this end."""


class Sender(Protocol):
    async def send(self, message: Message, tensors: Sequence[Tensor] = ()) -> int: ...

    def statistics(self) -> ChannelStatistics: ...


@runtime_checkable
class ThreadSender(Sender, Protocol):
    """A `Sender` that another thread than the event loop's may use as well, which saves waking the loop up first."""

    def send_from_thread(self, message: Message, tensors: Sequence[Tensor] = ()) -> int | None:
        """`send` at once; None, and nothing is sent, where that would have to wait or cannot be done."""
        ...


class Receiver(Protocol):
    async def receive(self) -> Envelope: ...

    def statistics(self) -> ChannelStatistics: ...


class ClientRouter(Protocol):
    """The coordinator's end towards its clients."""

    async def receive(self) -> tuple[bytes, Envelope]:
        """The next message and the client it came from."""
        ...

    async def send(self, peer: bytes, message: Message) -> bool:
        """Never waits. False: this client is gone, or does not read and its queue is full."""
        ...

    def statistics(self) -> ChannelStatistics: ...


class ClientChannel(Protocol):
    """A client's end. `receive` raises `VersionMismatch` when the coordinator speaks another version."""

    async def send(self, message: Message) -> int: ...

    async def receive(self) -> Envelope: ...

    async def close(self, seconds: float = CLOSE_SECONDS) -> None: ...


@dataclass(kw_only=True)
class ChannelSet:
    """Channels that are opened and closed together."""

    release: Callable[[float], Awaitable[None]] = field(repr=False)
    """Frees everything, within about the given number of seconds."""
    turned_away: Callable[[], int] = field(default=lambda: 0, repr=False)
    """How many peers had no key for the door at which they knocked."""
    closed: bool = field(default=False, init=False)

    def statistics(self) -> dict[str, ChannelStatistics]:
        """Of every channel that is there, by its name here."""
        channels = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: channel.statistics() for name, channel in channels if hasattr(channel, "statistics")}

    @property
    def refused(self) -> int:
        """Messages that could not be understood or believed, and peers that were turned away."""
        return self.turned_away() + sum(each.rejected for each in self.statistics().values())

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Let what was sent leave for at most `seconds` (0: abandon it), then free everything. Idempotent."""
        if not self.closed:
            self.closed = True
            await self.release(seconds)


@dataclass(kw_only=True)
class StageChannels(ChannelSet):
    forward_in: Receiver
    forward_out: Sender | None
    """None at the tail."""
    return_out: Sender
    broadcasts: Receiver
    """Hints, and verdicts too except at the tail."""
    verdicts: Sender | None
    """The tail's alone."""
    aim: Callable[[str], None] = field(default=lambda address: None, repr=False)
    """Lets `forward_out` lead to another address from now on; what waits for the old one is dropped."""


@dataclass(kw_only=True)
class CoordinatorChannels(ChannelSet):
    forward_out: Sender
    return_in: Receiver
    hints: Sender
    clients: ClientRouter
    aim: Callable[[str], None] = field(default=lambda address: None, repr=False)
    """As at a stage."""


@dataclass(kw_only=True)
class SpareChannels(ChannelSet):
    """For a spare that stands by."""

    return_out: Sender
    broadcasts: Receiver
    """Hints."""


@dataclass(kw_only=True)
class ListenerChannels(ChannelSet):
    """For whoever only watches: hints and verdicts."""

    broadcasts: Receiver


class Transport(Protocol):
    async def open_stage(self, topology: Topology, name: str) -> StageChannels: ...

    async def open_coordinator(self, topology: Topology) -> CoordinatorChannels: ...

    async def open_spare(self, topology: Topology, name: str) -> SpareChannels: ...

    async def open_listener(self, topology: Topology) -> ListenerChannels: ...

    async def connect_client(self, address: str) -> ClientChannel: ...


class Tally:
    """The counters behind `ChannelStatistics`, and the log of what was refused: one line per peer, ever."""

    def __init__(self, channel: str, capacity: int, logger: logging.Logger) -> None:
        self.channel = channel
        self.capacity = capacity
        self.messages = self.bytes = self.rejected = self.dropped = self.waiting = 0
        self.rejected_by_peer: dict[str, int] = {}
        self._logger = logger

    def carried(self, size: int) -> None:
        self.messages += 1
        self.bytes += size

    def refuse(self, peer: str, error: WireError) -> None:
        """Count a bad message; peers beyond the first 256 share one entry, so that nothing grows without bound."""
        self.rejected += 1
        if peer not in self.rejected_by_peer and len(self.rejected_by_peer) >= MAX_PEERS_COUNTED:
            peer = "other peers"
        seen = self.rejected_by_peer.get(peer, 0)
        self.rejected_by_peer[peer] = seen + 1
        if not seen:
            self._logger.warning(
                "%s: dropped a message from %s (later ones are only counted): %s", self.channel, peer, error
            )

    def statistics(self, queued: int | None = None) -> ChannelStatistics:
        return ChannelStatistics(
            messages=self.messages,
            bytes=self.bytes,
            rejected=self.rejected,
            dropped=self.dropped,
            queued=self.waiting if queued is None else queued,
            capacity=self.capacity,
        )
