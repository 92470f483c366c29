"""ZeroMQ on loopback: hostile and broken peers, peers that vanish, slow consumers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgpack
import pytest
import pytest_asyncio
import torch
import zmq
import zmq.asyncio

from flowspec.errors import TransportError, VersionMismatch
from flowspec.topology import Topology
from flowspec.transport.base import MAX_PEERS_COUNTED, ChannelClosed, Receiver
from flowspec.transport.sockets import ANSWER_BYTES, SocketOptions, SocketRouter, SocketSet, preferred
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.frames import FrameLimits, decode, encode
from flowspec.wire.messages import PROTOCOL_VERSION, Beacon, Close, Credit, Failed, StatusQuery
from tests.transport.opened import Opened, eventually, hears, soon

GARBAGE = [
    [b""],
    [b"not msgpack at all"],
    [b"\x91" * 5000],
    [b"\xdd\xff\xff\xff\xff"],
    [b""] * 20,
    [*encode(Close("s", 0)), b"a frame too many"],
    [msgpack.packb({"v": PROTOCOL_VERSION + 1})],
    [encode(Close("s", 0), [torch.zeros(4)])[0], b"short"],
]
OTHER_VERSION = msgpack.packb({"v": PROTOCOL_VERSION + 1, "kind": "status-query", "body": {}, "tensors": []})


class Plain:
    """Sockets that know nothing of flowspec."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self._sockets: list[zmq.asyncio.Socket] = []

    def socket(self, kind: int, *, connect: str = "", bind: str = "") -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        if connect:
            socket.connect(connect)
        else:
            socket.bind(bind)
        return socket

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()


@pytest_asyncio.fixture
async def plain() -> AsyncIterator[Plain]:
    sockets = Plain()
    yield sockets
    sockets.close()


# ---- what is no message ----------------------------------------------------------------------------------------------


async def test_garbage_on_a_pipe_is_counted_logged_once_and_skipped(
    opened: Opened, plain: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    socket = plain.socket(zmq.PUSH, connect=opened.topology.return_address)
    for _ in range(2):
        for frames in GARBAGE:
            await soon(socket.send_multipart(frames))
        await soon(socket.send_multipart(encode(Credit("stage-1", 3))))
        assert (await soon(coordinator.return_in.receive())).message == Credit("stage-1", 3)
    assert coordinator.return_in.statistics().rejected == 2 * len(GARBAGE)
    assert coordinator.return_in.statistics().messages == 2
    [record] = caplog.records
    assert "draft/return: dropped a message from 127.0.0.1" in record.getMessage()


async def test_a_flood_of_garbage_does_not_starve_other_tasks(opened: Opened, plain: Plain) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    socket = plain.socket(zmq.PUSH, connect=opened.topology.return_address)
    receiving = asyncio.create_task(coordinator.return_in.receive())

    async def flood() -> None:
        for _ in range(400):
            await socket.send(b"garbage")
        await socket.send_multipart(encode(Credit("stage-1", 1)))

    await soon(flood())
    assert (await soon(receiving)).message == Credit("stage-1", 1)


async def test_garbage_from_a_publisher_is_skipped(opened: Opened, plain: Plain) -> None:
    """A stage that listens where something else publishes."""
    socket = plain.socket(zmq.PUB, bind=opened.topology.hints_address)
    listener = await opened.listener(ZeroMQTransport())

    async def joined() -> bool:
        await socket.send_multipart(encode(Beacon("first", ())))
        return listener.broadcasts.statistics().messages > 0

    receiving = asyncio.create_task(listener.broadcasts.receive())
    await eventually(joined)
    await soon(receiving)
    await socket.send(b"garbage")
    await socket.send_multipart(encode(Beacon("last", ())))
    while (await soon(listener.broadcasts.receive())).message != Beacon("last", ()):
        pass
    assert listener.broadcasts.statistics().rejected == 1


async def test_the_log_of_bad_peers_is_bounded(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    tally = coordinator.return_in._tally  # type: ignore[attr-defined]
    for number in range(2 * MAX_PEERS_COUNTED):
        tally.refuse(f"10.0.{number >> 8}.{number & 255}", VersionMismatch("no"))
    assert len(tally.rejected_by_peer) == len(caplog.records) == MAX_PEERS_COUNTED + 1
    assert tally.statistics().rejected == 2 * MAX_PEERS_COUNTED


async def test_an_oversize_frame_is_refused_and_the_channel_lives_on(opened: Opened, plain: Plain) -> None:
    limits = FrameLimits(header_bytes=1000, tensor_bytes=2000)
    coordinator = await opened.coordinator(ZeroMQTransport(SocketOptions(limits=limits)))
    hostile = plain.socket(zmq.PUSH, connect=opened.topology.return_address)
    await soon(hostile.send_multipart([b"h", bytes(100_000)]))
    await soon(hostile.send_multipart([bytes(1500)]))
    friend = plain.socket(zmq.PUSH, connect=opened.topology.return_address)
    await soon(friend.send_multipart(encode(Credit("stage-1", 3))))
    assert (await soon(coordinator.return_in.receive())).message == Credit("stage-1", 3)


async def test_a_client_cannot_send_tensors_or_large_frames(opened: Opened, plain: Plain) -> None:
    options = SocketOptions(limits=FrameLimits(header_bytes=1000))
    coordinator = await opened.coordinator(ZeroMQTransport(options))
    receiving = asyncio.create_task(coordinator.clients.receive())
    hostile = plain.socket(zmq.DEALER, connect=opened.topology.client_address)
    await soon(hostile.send_multipart(encode(StatusQuery("with a tensor"), [torch.zeros(4)])))
    await soon(hostile.send(encode(StatusQuery("small"))[0]))
    _, envelope = await soon(receiving)
    assert envelope.message == StatusQuery("small")
    assert coordinator.clients.statistics().rejected == 1
    await soon(hostile.send(encode(Failed("r", "X", "x" * 2000))[0]))
    client = await opened.client(ZeroMQTransport(options))
    await soon(client.send(StatusQuery("another client's")))
    _, envelope = await soon(coordinator.clients.receive())
    assert envelope.message == StatusQuery("another client's")


# ---- clients of another version --------------------------------------------------------------------------------------


async def test_a_client_of_another_version_is_told_so(opened: Opened, plain: Plain) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    receiving = asyncio.create_task(coordinator.clients.receive())
    old = plain.socket(zmq.DEALER, connect=opened.topology.client_address)
    await soon(old.send(OTHER_VERSION))
    answer = decode(await soon(old.recv_multipart())).message
    assert isinstance(answer, Failed)
    assert answer.error == "VersionMismatch"
    assert f"version {PROTOCOL_VERSION + 1}, this node version {PROTOCOL_VERSION}" in answer.message
    client = await opened.client(ZeroMQTransport())
    await soon(client.send(StatusQuery("r")))
    _, envelope = await soon(receiving)
    assert envelope.message == StatusQuery("r")


async def test_a_client_of_a_coordinator_of_another_version_is_told_so(opened: Opened, plain: Plain) -> None:
    router = plain.socket(zmq.ROUTER, bind=opened.topology.client_address)
    client = await opened.client(ZeroMQTransport())
    await soon(client.send(StatusQuery("r")))
    identity, _ = await soon(router.recv_multipart())
    await soon(router.send_multipart([identity, b"garbage"]))
    await soon(router.send_multipart([identity, OTHER_VERSION]))
    with pytest.raises(VersionMismatch, match="same release"):
        await soon(client.receive())


# ---- peers that vanish, or do not read -------------------------------------------------------------------------------


async def test_a_stage_that_vanishes_and_comes_back_gets_what_waited(opened: Opened) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    await hears(stage.forward_in, coordinator.forward_out, Close("before", 0))
    await soon(stage.close(0))
    for number in range(20):
        await soon(coordinator.forward_out.send(Close("while away", number)))
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    assert await received_until(stage.forward_in, Close("while away", 19))
    await hears(stage.forward_in, coordinator.forward_out, Close("after", 0))


async def received_until(receiver: Receiver, last: Close) -> bool:
    """In order up to `last`; what left just before the peer's end was noticed may be missing."""
    previous = -1
    while (message := (await soon(receiver.receive())).message) != last:
        assert isinstance(message, Close)
        assert message.session == "before" or message.epoch > previous
        previous = message.epoch if message.session == last.session else previous
    return True


async def test_a_slow_consumer_holds_its_sender_up_and_loses_nothing(opened: Opened) -> None:
    transport = ZeroMQTransport(SocketOptions(pipe_depth=2))
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    await hears(stage.forward_in, coordinator.forward_out, Close("first", 0))
    block = torch.zeros(2**19)
    count = 60

    async def send() -> None:
        for number in range(count):
            await coordinator.forward_out.send(Close("s", number), [block])

    sending = asyncio.create_task(send())
    done, _ = await asyncio.wait([sending], timeout=0.3)  # that it does not end is the claim: 120 MB have no room
    assert not done
    assert coordinator.forward_out.statistics().queued == 1
    held = coordinator.forward_out.statistics().messages
    assert held < count // 2
    numbers = []
    while len(numbers) < count:
        message = (await soon(stage.forward_in.receive())).message
        assert isinstance(message, Close)
        if message.session == "s":
            numbers.append(message.epoch)
    assert numbers == list(range(count))
    await soon(sending)


LEFT_ALONE = """
import asyncio, zmq
from flowspec.transport.sockets import SocketOptions, SocketReceiver, SocketSender, SocketSet
from flowspec.wire.frames import DEFAULT_LIMITS
from flowspec.wire.messages import Shutdown

async def main():
    options = SocketOptions(heartbeat_ms=20)
    reading, writing = SocketSet("reader", options), SocketSet("writer", options)
    pull, push = reading.create(zmq.PULL, "return", 2), writing.create(zmq.PUSH, "return", 2)
    await reading.bind(pull, "127.0.0.1", 0)
    writing.connect(push, pull.plain.last_endpoint.decode())
    sender = SocketSender(push, 2, DEFAULT_LIMITS)
    try:
        async with asyncio.timeout(1.0):  # that there is no room for more is the claim
            while True:
                await sender.send(Shutdown("x" * 200_000))
    except TimeoutError:
        await writing.close(0)
    await asyncio.sleep(0.5)  # many heartbeats
    print((await SocketReceiver(pull, 2, DEFAULT_LIMITS).receive()).message.kind)
    await reading.close(0)

asyncio.run(main())
"""


async def test_a_full_receiver_outlives_a_sender_that_goes_away() -> None:
    """In a process of its own: what this is about would end it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEFT_ALONE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out.decode().strip()) == (0, "shutdown"), err.decode()


async def test_closing_wakes_a_sender_that_waits_for_room(opened: Opened) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport(SocketOptions(pipe_depth=1)))

    async def send() -> None:
        while True:
            await coordinator.forward_out.send(Close("s", 0))

    sending = asyncio.create_task(send())

    async def waits() -> bool:
        return coordinator.forward_out.statistics().queued == 1

    await eventually(waits)
    await soon(coordinator.close(0))
    with pytest.raises(ChannelClosed):
        await soon(sending)


async def test_a_publisher_never_waits_for_a_listener_that_does_not_read(opened: Opened) -> None:
    transport = ZeroMQTransport(SocketOptions(broadcast_depth=2))
    coordinator = await opened.coordinator(transport)
    listener = await opened.listener(transport)
    await hears(listener.broadcasts, coordinator.hints, Beacon("i", ()))
    long = Beacon("i", ("x" * 100_000,))
    for _ in range(300):
        await soon(coordinator.hints.send(long))
    await hears(listener.broadcasts, coordinator.hints, Beacon("last", ()))


async def test_closing_sends_what_was_sent_before(opened: Opened) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    for number in range(20):
        await stage.return_out.send(Credit("stage-1", number), [torch.zeros(10_000)])
    await soon(stage.close(5.0))
    for number in range(20):
        assert (await soon(coordinator.return_in.receive())).message == Credit("stage-1", number)


# ---- addresses -------------------------------------------------------------------------------------------------------


async def test_names_and_wildcards_can_be_listened_on(opened: Opened) -> None:
    port = opened.topology.draft_node.port
    for host in ("localhost", "*", "0.0.0.0", "127.0.0.1"):
        sockets = SocketSet("node", SocketOptions(), insecure=True)
        await sockets.bind(sockets.create(zmq.PULL, "in", 1), host, port)
        await sockets.close(0)


def test_a_name_is_an_address_of_the_network_where_it_has_one(caplog: pytest.LogCaptureFixture) -> None:
    """Debian's /etc/hosts calls a machine by its own name 127.0.1.1."""
    assert preferred("pi", ["127.0.1.1", "::1", "192.0.2.7", "192.0.2.8"], "draft") == "192.0.2.7"
    assert preferred("pi", ["fe80::1%eth0"], "draft") == "fe80::1%eth0"
    assert not caplog.records
    assert preferred("pi", ["127.0.1.1", "::1"], "draft") == "127.0.1.1"
    assert "draft listens on 127.0.1.1, which is what pi is here: no other machine can reach it" in caplog.text


async def test_a_peer_cannot_fill_a_publisher_with_one_subscription(opened: Opened, plain: Plain) -> None:
    coordinator = await opened.coordinator(ZeroMQTransport())
    stage = await opened.stage(ZeroMQTransport(), "stage-1")
    await hears(stage.broadcasts, coordinator.hints, Beacon("before", ()))
    greedy = plain.socket(zmq.SUB, connect=f"tcp://127.0.0.1:{opened.topology.draft_node.port + 2}")
    greedy.monitor("inproc://greedy", zmq.EVENT_DISCONNECTED)
    watch = plain.socket(zmq.PAIR, connect="inproc://greedy")
    greedy.subscribe(b"x" * (2 * ANSWER_BYTES))
    await soon(watch.recv_multipart())
    greedy.monitor(None, 0)
    await hears(stage.broadcasts, coordinator.hints, Beacon("after", ()))


async def test_an_address_of_another_machine_cannot_be_listened_on(opened: Opened) -> None:
    sockets = SocketSet("node-7", SocketOptions(), insecure=True)
    try:
        with pytest.raises(
            TransportError, match=r"node node-7: cannot listen on 192\.0\.2\.1:.*\n.*`bind` of node node-7"
        ):
            await sockets.bind(sockets.create(zmq.PULL, "in", 1), "192.0.2.1", opened.topology.draft_node.port)
    finally:
        await sockets.close(0)


async def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(TransportError, match="cannot connect to nowhere"):
        await ZeroMQTransport().connect_client("nowhere")


async def test_what_clients_may_let_wait_is_bounded_for_each_of_them(opened: Opened) -> None:
    router = (await opened.coordinator(ZeroMQTransport())).clients
    assert isinstance(router, SocketRouter)
    plain = router._socket.plain
    assert (plain.rcvhwm, plain.sndhwm) == (SocketOptions().client_backlog, SocketOptions().client_depth)
    assert plain.rcvhwm * plain.maxmsgsize <= 64 * 2**20


async def test_channels_are_bounded_and_watched_by_heartbeats(topology: Topology) -> None:
    options = SocketOptions()
    sockets = SocketSet("node", options)
    try:
        socket = sockets.create(zmq.PUSH, "out", options.pipe_depth).plain
        assert (socket.sndhwm, socket.rcvhwm, socket.linger) == (64, 64, 0)
        assert socket.maxmsgsize == ANSWER_BYTES
        assert (socket.heartbeat_ivl, socket.heartbeat_timeout, socket.tcp_keepalive) == (1000, 30_000, 1)
        receiver = sockets.create(zmq.PULL, "in", options.pipe_depth).plain
        assert (receiver.heartbeat_ivl, receiver.maxmsgsize) == (0, options.limits.frame_bytes)
    finally:
        await sockets.close(0)
