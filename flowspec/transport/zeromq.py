"""ZeroMQ between devices: which socket of a role is bound or connected where. `docs/protocol.md` draws it.

    forward    PUSH -> PULL      bound by the receiving stage
    return     PUSH -> PULL      bound by the coordinator
    hints      PUB  -> SUB       bound by the coordinator
    verdicts   PUB  -> SUB       bound by the tail
    clients    DEALER <-> ROUTER bound by the coordinator

A peer that is not there (yet, or any more): what is pushed to it waits, up to the pipe's depth, then its sender waits;
when the peer is back it gets what waited, in order. What had left this process when the peer died is lost, which the
numbering of segments shows. What waited may be of an older epoch: a restarted peer has no such session, so it is a
no-op. The alternative (ZMQ_IMMEDIATE: queue only while connected) would throw away what waited, and make start-up
depend on its order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import zmq

from flowspec.transport.access import Access, Door
from flowspec.transport.base import CoordinatorChannels, ListenerChannels, SpareChannels, StageChannels
from flowspec.transport.keys import KeyFile
from flowspec.transport.sockets import (
    AimedSender,
    SocketClient,
    SocketOptions,
    SocketReceiver,
    SocketRouter,
    SocketSender,
    SocketSet,
)
from flowspec.wire.frames import DEFAULT_LIMITS

if TYPE_CHECKING:
    from flowspec.topology import Topology


class ZeroMQTransport:
    """Opens channels over TCP. Holds nothing itself: each channel set owns its context."""

    def __init__(self, options: SocketOptions | None = None, *, client_key: KeyFile | None = None) -> None:
        self.options = options or SocketOptions()
        self.client_key = client_key
        """With what `connect_client` shows who it is; None: the coordinator asks for no keys."""
        self._spare: str | None = None
        """Which spare opens channels here, whatever stage it is just then: it has a key of its own."""

    @classmethod
    def of(cls, topology: Topology) -> ZeroMQTransport:
        """With the bounds that a topology sets: `limits.queue` and `limits.message`."""
        limits = replace(DEFAULT_LIMITS, tensor_bytes=topology.limits.message)
        return cls(SocketOptions(pipe_depth=topology.limits.queue, limits=limits))

    async def open_stage(self, topology: Topology, name: str) -> StageChannels:
        index = topology.stage_index(name)
        stage, tail = topology.stages[index], index == len(topology.stages) - 1
        access = Access.of(topology, name, owner=self._spare)
        async with self._sockets(name, access, topology.insecure) as sockets:
            door = access.forward(index) if access else None
            forward_in = await self._pull(sockets, "forward", stage.bind, stage.port, door, access)
            verdicts = None
            if tail:
                door = access.verdicts() if access else None
                verdicts = await self._publish(sockets, "verdicts", stage.bind, stage.port + 1, door)
            draft = topology.draft_node.name
            heard = [(topology.hints_address, draft)]
            if not tail:
                heard.append((topology.verdicts_address, topology.tail.name))
            heard += topology.stand_in_verdicts
            forward_out = None
            if not tail:
                forward_out = self._push(sockets, "forward", topology.forward_address(index + 1), access)
            return StageChannels(
                release=sockets.close,
                turned_away=lambda: sockets.refused,
                forward_in=forward_in,
                forward_out=forward_out,
                return_out=self._push(sockets, "return", topology.return_address, access, draft),
                broadcasts=self._subscribe(sockets, heard, access),
                verdicts=verdicts,
                aim=_no_aim if forward_out is None else forward_out.aim,
            )

    async def open_spare(self, topology: Topology, name: str) -> SpareChannels:
        self._spare = name
        access = Access.of(topology, name)
        async with self._sockets(name, access, topology.insecure) as sockets:
            draft = topology.draft_node.name
            heard = [(topology.hints_address, draft)]
            return SpareChannels(
                release=sockets.close,
                turned_away=lambda: sockets.refused,
                return_out=self._push(sockets, "return", topology.return_address, access, draft),
                broadcasts=self._subscribe(sockets, heard, access),
            )

    async def open_coordinator(self, topology: Topology) -> CoordinatorChannels:
        node = topology.draft_node
        depth, limits = self.options.client_depth, self.options.client_limits
        access = Access.of(topology, node.name)
        async with self._sockets(node.name, access, topology.insecure) as sockets:
            router = sockets.create(zmq.ROUTER, "clients", depth, limits)
            router.plain.router_mandatory = 1
            router.plain.rcvhwm = self.options.client_backlog
            await sockets.bind(router, node.bind, node.port, access.clients() if access else None)
            returns, hints = (access.returns(), access.hints()) if access else (None, None)
            forward_out = self._push(sockets, "forward", topology.forward_address(0), access)
            return CoordinatorChannels(
                release=sockets.close,
                turned_away=lambda: sockets.refused,
                clients=SocketRouter(router, depth, limits),
                return_in=await self._pull(sockets, "return", node.bind, node.port + 1, returns, access),
                hints=await self._publish(sockets, "hints", node.bind, node.port + 2, hints),
                forward_out=forward_out,
                aim=forward_out.aim,
            )

    async def open_listener(self, topology: Topology, name: str = "listener") -> ListenerChannels:
        """`name`: whose key is shown where the topology has keys."""
        access = Access.of(topology, name)
        async with self._sockets(name, access) as sockets:
            heard = [
                (topology.hints_address, topology.draft_node.name),
                (topology.verdicts_address, topology.tail.name),
            ]
            return ListenerChannels(release=sockets.close, broadcasts=self._subscribe(sockets, heard, access))

    async def connect_client(self, address: str) -> SocketClient:
        key = self.client_key
        async with self._sockets("client", key) as sockets:
            depth = self.options.client_depth
            socket = sockets.create(zmq.DEALER, f"to {address}", depth)
            sockets.connect(socket, address, key.coordinator if key else None)
            return SocketClient(sockets, socket, depth)

    @asynccontextmanager
    async def _sockets(
        self, owner: str, keys: Access | KeyFile | None, insecure: bool = False
    ) -> AsyncIterator[SocketSet]:
        """Sockets that are closed at once if not all of them could be opened."""
        sockets = SocketSet(owner, self.options, pair=keys.pair if keys else None, insecure=insecure)
        try:
            yield sockets
        except BaseException:
            await sockets.close(0)
            raise

    async def _pull(
        self, sockets: SocketSet, channel: str, host: str, port: int, door: Door | None, access: Access | None
    ) -> SocketReceiver:
        depth = self.options.pipe_depth
        socket = sockets.create(zmq.PULL, channel, depth)
        await sockets.bind(socket, host, port, door)
        return SocketReceiver(socket, depth, self.options.limits, deputies=access.deputies if access else None)

    def _push(
        self, sockets: SocketSet, channel: str, address: str, access: Access | None, node: str | None = None
    ) -> AimedSender:
        """To `node`, or to whoever takes segments at `address`."""
        depth = self.options.pipe_depth
        socket = sockets.create(zmq.PUSH, channel, depth)

        def connect(place: str) -> None:
            key = None if access is None else access.key_of(node) if node is not None else access.key_at(place)
            sockets.connect(socket, place, key)

        def move(old: str, new: str) -> None:
            socket.plain.disconnect(old)
            connect(new)

        connect(address)

        return AimedSender(socket, depth, self.options.limits, address, move)

    async def _publish(self, sockets: SocketSet, channel: str, host: str, port: int, door: Door | None) -> SocketSender:
        depth = self.options.broadcast_depth
        socket = sockets.create(zmq.PUB, channel, depth)
        await sockets.bind(socket, host, port, door)
        return SocketSender(socket, depth, self.options.limits)

    def _subscribe(self, sockets: SocketSet, heard: list[tuple[str, str]], access: Access | None) -> SocketReceiver:
        """`heard`: addresses, each with the name of the node that publishes there."""
        depth = self.options.broadcast_depth
        socket = sockets.create(zmq.SUB, "broadcasts", depth)
        socket.plain.subscribe(b"")
        for address, name in heard:
            sockets.connect(socket, address, _key(access, name))
        return SocketReceiver(socket, depth, self.options.limits)


def _no_aim(address: str) -> None:
    """Of the tail, whose forward pipe leads nowhere."""


def _key(access: Access | None, node: str) -> bytes | None:
    return access.key_of(node) if access else None
