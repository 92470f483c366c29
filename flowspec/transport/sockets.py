"""ZeroMQ sockets as channels: one socket each, bounded and counted.

`SocketSet` owns a context and its sockets; the classes below it put messages on them. Knows no topology: which socket
is bound where is decided in `zeromq`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import zmq

from flowspec.errors import ForgedSender, PortInUse, SecurityError, TransportError, VersionMismatch, WireError
from flowspec.transport.base import ChannelStatistics, Tally
from flowspec.transport.keys import KeyPair
from flowspec.transport.loop_socket import LoopSocket
from flowspec.transport.zap import ZapHandler, guard
from flowspec.wire.frames import DEFAULT_LIMITS, Envelope, FrameLimits, decode, encode
from flowspec.wire.messages import Failed, Message

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TURNS = 32
"""Messages taken in a row before other tasks get a turn: awaiting what is ready already does not yield to the loop."""


ZERO_COPY_BYTES = 256 * 1024
"""Larger messages are sent without a copy. For smaller ones copying is faster (128 KB beside a compute thread: by 5 %),
because the thread that frees what was sent needs the interpreter just when the answer comes in."""


SENDERS = (zmq.PUSH, zmq.PUB)
"""The sockets that send ZeroMQ's heartbeats. None that receives may: when its queue is full and its peer goes away, the
next heartbeat is a failed assertion of libzmq 4.3.5 (`stream_engine_base.cpp`), which ends the whole process."""

ANSWER_BYTES = 2048
"""Of what a peer says to a socket that only sends: its part of the handshake, and what it subscribes to. libzmq keeps a
subscription as a tree with a node for each byte, fifty times its size."""


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Bounds and timers of all sockets. Depths count messages, at each end of a connection."""

    pipe_depth: int = 64
    broadcast_depth: int = 256
    client_depth: int = 1000
    client_backlog: int = 16
    """Messages that wait for the coordinator, per client: each may have as many bytes as a header."""
    heartbeat_ms: int = 1000
    heartbeat_timeout_ms: int = 30_000
    """Longer than any full receiver that is not lost anyway: it answers no ZeroMQ heartbeat until it reads on."""
    keepalive_seconds: int = 5
    """Of silence on a connection until TCP asks whether the other end is there, and then every second so many times."""
    handshake_ms: int = 10_000
    reconnect_ms: int = 100
    reconnect_max_ms: int = 1000
    limits: FrameLimits = DEFAULT_LIMITS

    @property
    def client_limits(self) -> FrameLimits:
        """Of what clients send: there are many, nobody knows them, and they have no tensors to send."""
        return replace(self.limits, frames=1, tensor_bytes=0)


class SocketSet:
    """A context and its sockets, closed together. Lives in the event loop that runs when it is made.

    With a `pair` of keys, all of them are encrypted, and both ends of every connection show that they have their key.
    Without, they are bound beyond this machine only when that is said to be `insecure` on purpose.
    """

    def __init__(
        self, owner: str, options: SocketOptions, *, pair: KeyPair | None = None, insecure: bool = False
    ) -> None:
        self.owner = owner
        self.options = options
        self._pair = pair
        self._insecure = insecure
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[LoopSocket] = []
        self._zap: ZapHandler | None = None
        self._zap_task: asyncio.Task[None] | None = None

    @property
    def refused(self) -> int:
        """Peers that had no key for the door at which they knocked."""
        return self._zap.refused if self._zap else 0

    def create(self, kind: int, channel: str, depth: int, limits: FrameLimits | None = None) -> LoopSocket:
        """A socket of the channel OWNER/`channel`, its options set, as they must be before it is bound or connected."""
        options = self.options
        socket = self._context.socket(kind)
        created = LoopSocket(socket, f"{self.owner}/{channel}")
        self._sockets.append(created)
        if self._pair is not None:
            socket.curve_publickey, socket.curve_secretkey = self._pair.public, self._pair.secret
        socket.handshake_ivl = options.handshake_ms
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = depth
        socket.maxmsgsize = ANSWER_BYTES if kind in SENDERS else (limits or options.limits).frame_bytes
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = socket.tcp_keepalive_cnt = options.keepalive_seconds
        socket.tcp_keepalive_intvl = 1
        if kind in SENDERS:
            socket.heartbeat_ivl = options.heartbeat_ms
            socket.heartbeat_timeout = options.heartbeat_timeout_ms
        socket.reconnect_ivl = options.reconnect_ms
        socket.reconnect_ivl_max = options.reconnect_max_ms
        return created

    async def bind(self, socket: LoopSocket, host: str, port: int, door: Mapping[bytes, str] | None = None) -> None:
        """Bind to a name, an address or "*"; `door` has the public keys that may connect, with their owners' names.

        Raises `PortInUse`, `TransportError` or `SecurityError`.
        """
        address = await _numeric(host, self.owner)
        if self._pair is not None:
            domain = socket.channel.rpartition("/")[2]
            self._handler().open_door(domain, door or {})
            guard(socket, domain)
        elif not ipaddress.ip_address(address).is_loopback:
            self._expose(host)
        socket.plain.ipv6 = ":" in address
        endpoint = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
        try:
            socket.plain.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"port {port} on {host} is taken by another program",
                    node=self.owner,
                    hint=f"stop that program, or give node {self.owner} another `port` in the topology file "
                    "(a draft node takes three ports in a row, the last stage two)",
                ) from error
            raise TransportError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                node=self.owner,
                hint=f"set `bind` of node {self.owner} to an address of this machine, or to 0.0.0.0",
            ) from error

    def _handler(self) -> ZapHandler:
        if self._zap is None:
            self._zap = ZapHandler(LoopSocket(self._context.socket(zmq.REP), f"{self.owner}/keys"), self.owner)
            self._zap_task = asyncio.get_running_loop().create_task(self._zap.run(), name=f"{self.owner}: keys")
        return self._zap

    def _expose(self, host: str) -> None:
        """Listen beyond this machine without keys: only when told so, and never silently."""
        if not self._insecure:
            raise SecurityError(
                f"{host} can be reached from other machines, and the topology has no keys",
                node=self.owner,
                hint="`flowspec keys TOPOLOGY` makes them; without, for a network in which you trust everybody: "
                "`insecure: true` in the topology, or --insecure",
            )
        logger.warning("%s listens on %s without encryption and without keys (insecure)", self.owner, host)

    def connect(self, socket: LoopSocket, address: str, server_key: bytes | None = None) -> None:
        """Returns at once: ZeroMQ connects, and connects again, in the background; with keys, to this one's owner."""
        if self._pair is not None:
            assert server_key is not None, "with keys, every peer has one"
            socket.plain.curve_serverkey = server_key
        socket.plain.ipv6 = "[" in address
        try:
            socket.plain.connect(address)
        except zmq.ZMQError as error:
            raise TransportError(
                f"cannot connect to {address}: {error.strerror}",
                node=self.owner,
                hint="an address reads tcp://HOST:PORT, for example tcp://127.0.0.1:5700",
            ) from error

    async def close(self, seconds: float) -> None:
        for socket in self._sockets:
            socket.close(round(seconds * 1000))
        if self._zap is not None and self._zap_task is not None:
            self._zap.close()
            await asyncio.wait([self._zap_task])
        await _terminate(self._context)


async def _numeric(host: str, owner: str) -> str:
    """ZeroMQ binds to addresses only, so a name is looked up first."""
    if host == "*":
        return "0.0.0.0"
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as error:
        raise TransportError(f"the name {host} is not known here: {error}", node=owner) from error
    return preferred(host, [str(place[4][0]) for place in found], owner)


def preferred(name: str, addresses: Sequence[str], owner: str) -> str:
    """The one of a name's addresses to listen on."""
    # Many systems know themselves by their own name as 127.0.1.1, and perhaps by an address of the network besides.
    outside = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_loopback]
    if not outside:
        logger.warning(
            "%s listens on %s, which is what %s is here: no other machine can reach it. If others are to, "
            "write an address of this machine as its `host`, or `bind: 0.0.0.0`",
            owner,
            addresses[0],
            name,
        )
    return (outside or addresses)[0]


async def _terminate(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Wait, off the loop, until the context's threads are gone; the lingering of its sockets bounds the wait.

    A thread of its own, not the loop's executor: that one would leave its worker behind.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def terminate() -> None:
        context.term()
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=terminate, name="zmq-terminate", daemon=True)
    thread.start()
    await done.wait()
    thread.join()


class SocketSender:
    """PUSH, PUB or DEALER. PUSH and DEALER wait when full; PUB drops, per subscriber and unseen."""

    def __init__(self, socket: LoopSocket, depth: int, limits: FrameLimits) -> None:
        self._socket = socket
        self._limits = limits
        self._tally = Tally(socket.channel, depth, logger)

    async def send(self, message: Message, tensors: Sequence[Tensor] = ()) -> int:
        frames, size, copy = self._frames(message, tensors)
        if not self._socket.try_send(frames, copy=copy):
            self._tally.waiting += 1
            try:
                await self._socket.send(frames, copy=copy)
            finally:
                self._tally.waiting -= 1
        self._carried(size)
        return size

    def send_from_thread(self, message: Message, tensors: Sequence[Tensor] = ()) -> int | None:
        """As in `ThreadSender`. Not for DEALER, from which somebody receives."""
        frames, size, copy = self._frames(message, tensors)
        if not self._socket.send_from_thread(frames, copy=copy):
            return None
        self._carried(size)
        return size

    def _carried(self, size: int) -> None:
        with self._socket.lock:
            self._tally.carried(size)

    def _frames(self, message: Message, tensors: Sequence[Tensor]) -> tuple[list[bytes | memoryview], int, bool]:
        """What is to be sent, its bytes, and whether it is to be copied."""
        frames = encode(message, tensors, self._limits)
        size = sum(map(_nbytes, frames))
        return frames, size, size < ZERO_COPY_BYTES

    def statistics(self) -> ChannelStatistics:
        return self._tally.statistics()


class AimedSender(SocketSender):
    """PUSH that may be led to another address."""

    def __init__(
        self,
        socket: LoopSocket,
        depth: int,
        limits: FrameLimits,
        address: str,
        move: Callable[[str, str], None],
    ) -> None:
        super().__init__(socket, depth, limits)
        self._address = address
        self._move = move

    def aim(self, address: str) -> None:
        """Send to `address` from now on; what waits for the former one is dropped."""
        if address != self._address and not self._socket.closed:
            with self._socket.lock:
                self._move(self._address, address)
            self._address = address


class SocketReceiver:
    """PULL, SUB, DEALER or ROUTER: `next_frames` is what differs for a router.

    With `deputies`, its peers have shown their keys, so that what names a node must come from that node, or from one of
    these, who may speak for others.
    """

    def __init__(
        self, socket: LoopSocket, depth: int, limits: FrameLimits, *, deputies: frozenset[str] | None = None
    ) -> None:
        self._socket = socket
        self._limits = limits
        self._deputies = deputies
        self._tally = Tally(socket.channel, depth, logger)
        self._turns = 0

    async def receive(self) -> Envelope:
        while True:
            frames = await self._next_frames()
            try:
                return self._accept(frames)
            except WireError as error:
                await self._refuse(_peer(frames), error)

    def _accept(self, frames: list[zmq.Frame]) -> Envelope:
        buffers = [frame.buffer for frame in frames]
        envelope = decode(buffers, self._limits)
        if self._deputies is not None:
            _check_sender(envelope.message, frames[0], self._deputies)
        self._tally.carried(sum(map(_nbytes, buffers)))
        return envelope

    async def _refuse(self, peer: str, error: WireError) -> None:
        self._tally.refuse(peer, error)
        await asyncio.sleep(0)

    async def _next_frames(self) -> list[zmq.Frame]:
        self._turns += 1
        if self._turns % TURNS == 0:
            await asyncio.sleep(0)
        return await self._socket.receive()

    def statistics(self) -> ChannelStatistics:
        return self._tally.statistics()


def _nbytes(frame: bytes | memoryview) -> int:
    return len(frame) if type(frame) is bytes else memoryview(frame).nbytes


def _check_sender(message: Message, frame: zmq.Frame, deputies: frozenset[str]) -> None:
    """A node speaks for itself alone: the name in the message is that of the key with which its connection opened."""
    node = getattr(message, "node", None)
    owner = frame.get("User-Id")
    if node is not None and node != owner and owner not in deputies:
        raise ForgedSender(f"a {message.kind} in the name of {str(node)[:64]}, sent with the key of {owner}")


def _peer(frames: list[zmq.Frame]) -> str:
    try:
        return str(frames[0].get("Peer-Address"))
    except zmq.ZMQError:
        return "an unknown peer"


class SocketRouter(SocketReceiver):
    """ROUTER towards the clients: the first frame of each message names the client."""

    async def receive(self) -> tuple[bytes, Envelope]:  # type: ignore[override]
        while True:
            identity, *frames = await self._next_frames()
            peer = identity.bytes
            try:
                return peer, self._accept(frames)
            except WireError as error:
                if isinstance(error, VersionMismatch):
                    await self.send(peer, Failed(request="", error="VersionMismatch", message=str(error)))
                await self._refuse(_peer([identity]), error)

    async def send(self, peer: bytes, message: Message) -> bool:
        frames = [peer, *encode(message, (), self._limits)]
        try:
            sent = self._socket.try_send(frames, copy=True)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            sent = False
        if not sent:
            self._tally.dropped += 1
        return sent


class SocketClient(SocketSender, SocketReceiver):
    """DEALER of one client."""

    def __init__(self, sockets: SocketSet, socket: LoopSocket, depth: int) -> None:
        SocketReceiver.__init__(self, socket, depth, sockets.options.limits)
        self._sockets = sockets

    async def _refuse(self, peer: str, error: WireError) -> None:
        if isinstance(error, VersionMismatch):
            raise error
        await super()._refuse(peer, error)

    async def close(self, seconds: float = 0.5) -> None:
        if not self._socket.closed:
            await self._sockets.close(seconds)
