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

from flowspec.transport.base import CoordinatorChannels, ListenerChannels, StageChannels
from flowspec.transport.sockets import (
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

    def __init__(self, options: SocketOptions | None = None) -> None:
        self.options = options or SocketOptions()

    @classmethod
    def of(cls, topology: Topology) -> ZeroMQTransport:
        """With the bounds that a topology sets: `limits.queue` and `limits.message`."""
        limits = replace(DEFAULT_LIMITS, tensor_bytes=topology.limits.message)
        return cls(SocketOptions(pipe_depth=topology.limits.queue, limits=limits))

    async def open_stage(self, topology: Topology, name: str) -> StageChannels:
        index = topology.stage_index(name)
        stage, tail = topology.stages[index], index == len(topology.stages) - 1
        async with self._sockets(name) as sockets:
            forward_in = await self._pull(sockets, "forward", stage.bind, stage.port)
            verdicts = await self._publish(sockets, "verdicts", stage.bind, stage.port + 1) if tail else None
            heard = [topology.hints_address] if tail else [topology.hints_address, topology.verdicts_address]
            return StageChannels(
                release=sockets.close,
                forward_in=forward_in,
                forward_out=None if tail else self._push(sockets, "forward", topology.forward_address(index + 1)),
                return_out=self._push(sockets, "return", topology.return_address),
                broadcasts=self._subscribe(sockets, heard),
                verdicts=verdicts,
            )

    async def open_coordinator(self, topology: Topology) -> CoordinatorChannels:
        node = topology.draft_node
        depth, limits = self.options.client_depth, self.options.client_limits
        async with self._sockets(node.name) as sockets:
            router = sockets.create(zmq.ROUTER, "clients", depth, limits)
            router.plain.router_mandatory = 1
            await sockets.bind(router, node.bind, node.port)
            return CoordinatorChannels(
                release=sockets.close,
                clients=SocketRouter(router, depth, limits),
                return_in=await self._pull(sockets, "return", node.bind, node.port + 1),
                hints=await self._publish(sockets, "hints", node.bind, node.port + 2),
                forward_out=self._push(sockets, "forward", topology.forward_address(0)),
            )

    async def open_listener(self, topology: Topology) -> ListenerChannels:
        async with self._sockets("listener") as sockets:
            heard = [topology.hints_address, topology.verdicts_address]
            return ListenerChannels(release=sockets.close, broadcasts=self._subscribe(sockets, heard))

    async def connect_client(self, address: str) -> SocketClient:
        async with self._sockets("client") as sockets:
            depth = self.options.client_depth
            socket = sockets.create(zmq.DEALER, f"to {address}", depth)
            sockets.connect(socket, address)
            return SocketClient(sockets, socket, depth)

    @asynccontextmanager
    async def _sockets(self, owner: str) -> AsyncIterator[SocketSet]:
        """Sockets that are closed at once if not all of them could be opened."""
        sockets = SocketSet(owner, self.options)
        try:
            yield sockets
        except BaseException:
            await sockets.close(0)
            raise

    async def _pull(self, sockets: SocketSet, channel: str, host: str, port: int) -> SocketReceiver:
        depth = self.options.pipe_depth
        socket = sockets.create(zmq.PULL, channel, depth)
        await sockets.bind(socket, host, port)
        return SocketReceiver(socket, depth, self.options.limits)

    def _push(self, sockets: SocketSet, channel: str, address: str) -> SocketSender:
        depth = self.options.pipe_depth
        socket = sockets.create(zmq.PUSH, channel, depth)
        sockets.connect(socket, address)
        return SocketSender(socket, depth, self.options.limits)

    async def _publish(self, sockets: SocketSet, channel: str, host: str, port: int) -> SocketSender:
        depth = self.options.broadcast_depth
        socket = sockets.create(zmq.PUB, channel, depth)
        await sockets.bind(socket, host, port)
        return SocketSender(socket, depth, self.options.limits)

    def _subscribe(self, sockets: SocketSet, addresses: list[str]) -> SocketReceiver:
        depth = self.options.broadcast_depth
        socket = sockets.create(zmq.SUB, "broadcasts", depth)
        socket.plain.subscribe(b"")
        for address in addresses:
            sockets.connect(socket, address)
        return SocketReceiver(socket, depth, self.options.limits)
