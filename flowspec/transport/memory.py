"""All nodes in one process: the same channels without sockets, with faults on demand. For tests and for one machine.

Messages go through the real codec, so what works here works on the wire. Pipes are as bounded as sockets are: `send`
waits when one is full. Broadcasts can be dropped, doubled, delayed and reordered, and segments can be lost: by
probabilities drawn from a seed, the same in every run. Knows no clock: a delay is counted in later messages.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from flowspec.errors import VersionMismatch, WireError
from flowspec.transport.base import (
    CLOSE_SECONDS,
    ChannelClosed,
    ChannelStatistics,
    CoordinatorChannels,
    ListenerChannels,
    SpareChannels,
    StageChannels,
    Tally,
)
from flowspec.transport.mailbox import Depths, Faults, Frames, Link, Mailbox, Network, copied
from flowspec.wire.frames import DEFAULT_LIMITS, Envelope, FrameLimits, decode, encode
from flowspec.wire.messages import Message

if TYPE_CHECKING:
    from torch import Tensor

    from flowspec.topology import Topology

__all__ = ["Depths", "Faults", "MemoryTransport"]

logger = logging.getLogger(__name__)


class MemoryReceiver:
    """The reading end of a mailbox."""

    def __init__(self, mailbox: Mailbox, channel: str, network: Network) -> None:
        self._mailbox = mailbox
        self._network = network
        self.tally = Tally(channel, mailbox.capacity, logger)
        self._closed = False

    async def receive(self) -> Envelope:
        return (await self.receive_from())[1]

    async def receive_from(self) -> tuple[bytes, Envelope]:
        """The next message and who sent it."""
        while True:
            sender, frames = await self._next()
            try:
                envelope = decode(frames, self._network.limits)
            except WireError as error:
                self.refuse(sender, error)
                continue
            self.tally.carried(sum(map(len, frames)))
            return sender, envelope

    def refuse(self, sender: bytes, error: WireError) -> None:
        self.tally.refuse(sender.decode(errors="replace") or "a publisher", error)

    async def _next(self) -> tuple[bytes, Frames]:
        await asyncio.sleep(0)
        while True:
            self.check_open()
            if (item := self._mailbox.take()) is not None:
                return item
            await self._mailbox.changed()

    def check_open(self) -> None:
        if self._closed:
            raise ChannelClosed(f"the channel {self.tally.channel} is closed")

    def statistics(self) -> ChannelStatistics:
        return self.tally.statistics(queued=len(self._mailbox.waiting))

    def shut(self) -> None:
        self._closed = True
        self._mailbox.detach()


class MemorySender:
    """The writing end of a pipe: waits for room, keeps the order of its callers. `hop` numbers forward pipes."""

    def __init__(self, mailbox: Mailbox, channel: str, owner: str, network: Network, hop: int | None = None) -> None:
        self._mailbox = mailbox
        self._owner = owner
        self._channel = channel
        self._network = network
        self._hop = hop
        self._tally = Tally(f"{owner}/{channel}", mailbox.capacity, logger)
        self._order = asyncio.Lock()
        self._closed = False

    async def send(self, message: Message, tensors: Sequence[Tensor] = ()) -> int:
        frames = copied(encode(message, tensors, self._network.limits))
        size = sum(map(len, frames))
        self._tally.waiting += 1
        try:
            async with self._order:
                self._check_open()
                self._network.observed(self._channel, self._owner, message)
                if not self._network.loses(self._hop, message):
                    await self._put(frames)
        finally:
            self._tally.waiting -= 1
        self._tally.carried(size)
        return size

    async def _put(self, frames: Frames) -> None:
        while not self._mailbox.try_put(self._owner.encode(), frames):
            await self._mailbox.changed()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosed(f"the channel {self._tally.channel} is closed")

    def aim(self, mailbox: Mailbox) -> None:
        """Send to another address from now on; who waits for room at the old one looks again."""
        before, self._mailbox = self._mailbox, mailbox
        before.notify()

    def statistics(self) -> ChannelStatistics:
        return self._tally.statistics()

    def shut(self) -> None:
        self._closed = True
        self._mailbox.notify()


class MemoryPublisher:
    """The writing end of a broadcast: never waits; every listener's link has its own luck."""

    def __init__(self, links: list[Link], channel: str, owner: str, network: Network) -> None:
        self._links = links
        self._owner = owner
        self._channel = channel
        self._network = network
        self._tally = Tally(f"{owner}/{channel}", network.depths.broadcast, logger)
        self._closed = False

    async def send(self, message: Message, tensors: Sequence[Tensor] = ()) -> int:
        frames = copied(encode(message, tensors, self._network.limits))
        if self._closed:
            raise ChannelClosed(f"the channel {self._tally.channel} is closed")
        self._network.observed(self._channel, self._owner, message)
        for link in self._links:
            link.deliver(message, frames)
        size = sum(map(len, frames))
        self._tally.carried(size)
        return size

    def statistics(self) -> ChannelStatistics:
        self._tally.dropped = sum(link.dropped for link in self._links)
        return self._tally.statistics()

    def shut(self) -> None:
        self._closed = True


class MemoryRouter:
    """The coordinator's end towards its clients."""

    def __init__(self, receiver: MemoryReceiver, clients: dict[bytes, Mailbox], owner: str, network: Network) -> None:
        self._receiver = receiver
        self._clients = clients
        self._owner = owner
        self._network = network

    async def receive(self) -> tuple[bytes, Envelope]:
        return await self._receiver.receive_from()

    async def send(self, peer: bytes, message: Message) -> bool:
        frames = copied(encode(message, (), self._network.limits))
        self._receiver.check_open()
        self._network.observed("clients", self._owner, message)
        mailbox = self._clients.get(peer)
        sent = mailbox is not None and mailbox.try_put(self._owner.encode(), frames)
        self._receiver.tally.dropped += not sent
        return sent

    def statistics(self) -> ChannelStatistics:
        return self._receiver.statistics()


class MemoryClient(MemoryReceiver):
    """A client's end."""

    def __init__(self, mailbox: Mailbox, network: Network, sender: MemorySender, forget: Callable[[], object]) -> None:
        super().__init__(mailbox, mailbox.address, network)
        self._sender = sender
        self._forget = forget

    async def send(self, message: Message) -> int:
        return await self._sender.send(message)

    def refuse(self, sender: bytes, error: WireError) -> None:
        if isinstance(error, VersionMismatch):
            raise error
        super().refuse(sender, error)

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        self._forget()
        self._sender.shut()
        self.shut()


class MemoryTransport:
    """One network: nodes that are opened on the same transport, and topologies with the same addresses, can talk."""

    def __init__(
        self,
        seed: int = 0,
        faults: Faults | None = None,
        depths: Depths | None = None,
        limits: FrameLimits = DEFAULT_LIMITS,
    ) -> None:
        self._network = Network(faults or Faults(), depths or Depths(), limits, seed)
        self._mailboxes: dict[str, Mailbox] = {}
        self._links: dict[str, list[Link]] = {}
        self._clients: dict[bytes, Mailbox] = {}
        self._names = itertools.count(1)

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; may be set at any time."""
        return self._network.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._network.faults = faults

    async def open_stage(self, topology: Topology, name: str) -> StageChannels:
        index = topology.stage_index(name)
        tail = index == len(topology.stages) - 1
        heard = [topology.hints_address] if tail else [topology.hints_address, topology.verdicts_address]
        heard += [address for address, _ in topology.stand_in_verdicts]
        forward_in = self._reader(topology.forward_address(index), name, "forward", self._network.depths.pipe)
        broadcasts, leave = self._subscribe(heard, name)
        forward_out = None if tail else self._pipe(topology.forward_address(index + 1), "forward", name, index + 1)
        return_out = self._pipe(topology.return_address, "return", name)
        verdicts = self._publisher(topology.verdicts_address, "verdicts", name) if tail else None
        ends = [end for end in (forward_in, broadcasts, forward_out, return_out, verdicts) if end is not None]
        return StageChannels(
            release=_release(ends, leave),
            forward_in=forward_in,
            forward_out=forward_out,
            return_out=return_out,
            broadcasts=broadcasts,
            verdicts=verdicts,
            aim=self._aimer(forward_out),
        )

    async def open_spare(self, topology: Topology, name: str) -> SpareChannels:
        broadcasts, leave = self._subscribe([topology.hints_address], name)
        return_out = self._pipe(topology.return_address, "return", name)
        return SpareChannels(
            release=_release([broadcasts, return_out], leave), return_out=return_out, broadcasts=broadcasts
        )

    async def open_coordinator(self, topology: Topology) -> CoordinatorChannels:
        name = topology.draft_node.name
        requests = self._reader(topology.client_address, name, "clients", self._network.depths.client)
        return_in = self._reader(topology.return_address, name, "return", self._network.depths.pipe)
        hints = self._publisher(topology.hints_address, "hints", name)
        forward_out = self._pipe(topology.forward_address(0), "forward", name, 0)
        return CoordinatorChannels(
            release=_release([requests, return_in, hints, forward_out]),
            forward_out=forward_out,
            return_in=return_in,
            hints=hints,
            clients=MemoryRouter(requests, self._clients, name, self._network),
            aim=self._aimer(forward_out),
        )

    async def open_listener(self, topology: Topology) -> ListenerChannels:
        heard = [topology.hints_address, topology.verdicts_address]
        broadcasts, leave = self._subscribe(heard, f"listener-{next(self._names)}")
        return ListenerChannels(release=_release([broadcasts], leave), broadcasts=broadcasts)

    async def connect_client(self, address: str) -> MemoryClient:
        name = f"client-{next(self._names)}"
        mailbox = Mailbox(name, self._network.depths.client)
        self._clients[name.encode()] = mailbox
        requests = self._mailbox(address, self._network.depths.client)
        sender = MemorySender(requests, "clients", name, self._network)
        return MemoryClient(mailbox, self._network, sender, lambda: self._clients.pop(name.encode(), None))

    def _aimer(self, sender: MemorySender | None) -> Callable[[str], None]:
        def aim(address: str) -> None:
            if sender is not None:
                sender.aim(self._mailbox(address, self._network.depths.pipe))

        return aim

    def _mailbox(self, address: str, capacity: int) -> Mailbox:
        return self._mailboxes.setdefault(address, Mailbox(address, capacity))

    def _reader(self, address: str, owner: str, channel: str, capacity: int) -> MemoryReceiver:
        mailbox = self._mailbox(address, capacity)
        mailbox.attach(owner)
        return MemoryReceiver(mailbox, f"{owner}/{channel}", self._network)

    def _pipe(self, address: str, channel: str, owner: str, hop: int | None = None) -> MemorySender:
        return MemorySender(self._mailbox(address, self._network.depths.pipe), channel, owner, self._network, hop)

    def _publisher(self, address: str, channel: str, owner: str) -> MemoryPublisher:
        return MemoryPublisher(self._links.setdefault(address, []), channel, owner, self._network)

    def _subscribe(self, addresses: list[str], owner: str) -> tuple[MemoryReceiver, Callable[[], None]]:
        mailbox = Mailbox(f"{owner}/broadcasts", self._network.depths.broadcast)
        links = [
            (address, Link(mailbox, self._network, f"{number} {owner}")) for number, address in enumerate(addresses)
        ]
        for address, link in links:
            self._links.setdefault(address, []).append(link)

        def leave() -> None:
            for address, link in links:
                self._links[address].remove(link)

        return MemoryReceiver(mailbox, mailbox.address, self._network), leave


def _release(
    ends: Sequence[MemoryReceiver | MemorySender | MemoryPublisher], *more: Callable[[], None]
) -> Callable[[float], Awaitable[None]]:
    async def release(seconds: float) -> None:
        for end in ends:
            end.shut()
        for step in more:
            step()

    return release
