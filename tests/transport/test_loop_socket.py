"""Plain sockets in an event loop: no notice is lost, whatever sends, receives, waits or gives up at the same time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import zmq

from flowspec.runtime.compute import ComputeThread
from flowspec.transport.base import ChannelClosed
from flowspec.transport.loop_socket import LoopSocket
from flowspec.transport.sockets import SocketOptions, SocketSet
from tests.transport.opened import soon

MESSAGES = 3000
SIZES = (0, 1, 300, 4096, 70_000, 300_000)


@pytest_asyncio.fixture
async def sockets() -> AsyncIterator[SocketSet]:
    opened = SocketSet("test", SocketOptions())
    yield opened
    await soon(opened.close(0))


async def connected(sockets: SocketSet, kinds: tuple[int, int], depth: int) -> tuple[LoopSocket, LoopSocket]:
    """Two sockets with small queues, the second of which has bound a port."""
    there = sockets.create(kinds[1], "there", depth)
    there.plain.bind("tcp://127.0.0.1:*")
    here = sockets.create(kinds[0], "here", depth)
    address = there.plain.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(address, bytes)
    sockets.connect(here, address.rstrip(b"\0").decode())
    return here, there


async def send_all(socket: LoopSocket, seed: int, count: int) -> None:
    """Messages that carry their number, of sizes that are sent with and without a copy; now and then a pause."""
    choice = random.Random(seed)
    for number in range(count):
        size = choice.choice(SIZES)
        await socket.send([b"%d" % number, bytes(size)], copy=size < 256 * 1024)
        if choice.random() < 0.1:
            await asyncio.sleep(0)


async def receive_all(socket: LoopSocket, seed: int, count: int, cancelled: list[int]) -> list[tuple[int, int]]:
    """(number, size) of each message; every third receive is given up at a random point."""
    choice = random.Random(seed)
    arrived: list[tuple[int, int]] = []
    while len(arrived) < count:
        receiving = asyncio.ensure_future(socket.receive())
        if choice.random() < 0.33:
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)
            if not receiving.done():
                receiving.cancel()
                cancelled.append(len(arrived))
        try:
            number, content = await receiving
        except asyncio.CancelledError:
            continue
        arrived.append((int(number.bytes), len(content.buffer)))
    return arrived


def expected(seed: int, count: int) -> list[tuple[int, int]]:
    choice, messages = random.Random(seed), []
    for number in range(count):
        messages.append((number, choice.choice(SIZES)))
        choice.random()
    return messages


@pytest.mark.parametrize("depth", [1, 64])
@pytest.mark.parametrize("kinds", [(zmq.PUSH, zmq.PULL), (zmq.DEALER, zmq.DEALER)])
async def test_nothing_is_lost_or_reordered_while_receives_are_given_up(
    sockets: SocketSet, kinds: tuple[int, int], depth: int
) -> None:
    """Both ways at once; a DEALER sends and receives on one socket, so each may take away the other's notice."""
    both_ways = kinds[0] == zmq.DEALER
    here, there = await connected(sockets, kinds, depth)
    back_out, back_in = (there, here) if both_ways else await connected(sockets, kinds, depth)
    cancelled: list[int] = []
    count = MESSAGES // 2
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(send_all(here, 1, count))
        group.create_task(send_all(back_out, 2, count))
        forth = group.create_task(receive_all(there, 3, count, cancelled))
        back = group.create_task(receive_all(back_in, 4, count, cancelled))
    assert forth.result() == expected(1, count)
    assert back.result() == expected(2, count)
    assert cancelled


async def test_senders_that_wait_are_served_in_their_order(sockets: SocketSet) -> None:
    here, there = await connected(sockets, (zmq.PUSH, zmq.PULL), 1)
    block = bytes(2**20)
    tasks = [asyncio.create_task(here.send([b"%d" % number, block], copy=True)) for number in range(40)]
    await asyncio.sleep(0)
    assert here.unsent > 10
    given_up = tasks[30]
    given_up.cancel()
    numbers = [int((await soon(there.receive()))[0].bytes) for _ in range(39)]
    assert numbers == [number for number in range(40) if number != 30]
    await soon(asyncio.wait(tasks))
    assert given_up.cancelled()
    assert here.unsent == 0


async def test_two_receivers_share_what_comes(sockets: SocketSet) -> None:
    here, there = await connected(sockets, (zmq.PUSH, zmq.PULL), 64)
    arrived: list[int] = []

    async def receive() -> None:
        while len(arrived) < 200:
            arrived.append(int((await there.receive())[0].bytes))

    tasks = [asyncio.create_task(receive()) for _ in range(2)]
    for number in range(200):
        await soon(here.send([b"%d" % number], copy=True))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await soon(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
    assert sorted(arrived) == list(range(200))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_closing_wakes_everybody_who_waits(sockets: SocketSet) -> None:
    here, there = await connected(sockets, (zmq.PUSH, zmq.PULL), 1)
    unconnected = sockets.create(zmq.PULL, "nobody", 1)
    sending = [asyncio.create_task(here.send([bytes(2**20)], copy=True)) for _ in range(40)]
    receiving = asyncio.create_task(unconnected.receive())
    given_up = asyncio.create_task(unconnected.receive())
    await asyncio.sleep(0)
    given_up.cancel()
    for socket in (here, there, unconnected):
        socket.close(0)
        socket.close(0)
        assert socket.closed
    await soon(asyncio.wait([*sending, receiving, given_up]))
    assert isinstance(receiving.exception(), ChannelClosed)
    assert given_up.cancelled()
    assert {type(task.exception()) for task in sending} == {ChannelClosed, type(None)}
    for call in (here.send([b""], copy=True), there.receive()):
        with pytest.raises(ChannelClosed, match="test/"):
            await call
    with pytest.raises(ChannelClosed):
        here.try_send([b""], copy=True)


async def test_a_full_socket_refuses_at_once_and_behind_others_who_wait(sockets: SocketSet) -> None:
    here = sockets.create(zmq.PUSH, "here", 1)
    sockets.connect(here, "tcp://127.0.0.1:9")
    assert here.try_send([b"fits"], copy=True)
    assert not here.try_send([b"does not"], copy=True)
    waiting = asyncio.create_task(here.send([b"waits"], copy=True))
    await asyncio.sleep(0)
    assert here.unsent == 1
    assert not here.try_send([b"behind it"], copy=True)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_thread_and_the_loop_send_through_one_socket_and_nothing_is_lost(sockets: SocketSet) -> None:
    """What the thread finds no room for it leaves to the loop; each of the two keeps its own order."""
    here, there = await connected(sockets, (zmq.PUSH, zmq.PULL), 2)
    count = MESSAGES // 3
    refused: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def send_from_thread() -> None:
        for number in range(count):
            if not here.send_from_thread([b"thread", b"%d" % number], copy=True):
                loop.call_soon_threadsafe(refused.put_nowait, number)

    async def send_from_loop() -> None:
        for number in range(count):
            await here.send([b"loop", b"%d" % number], copy=True)

    async def send_refused() -> None:
        while True:
            await here.send([b"again", b"%d" % await refused.get()], copy=True)

    again = asyncio.create_task(send_refused())
    compute = ComputeThread("compute")
    sending = asyncio.gather(compute.run(send_from_thread), send_from_loop())
    arrived: dict[bytes, list[int]] = {b"thread": [], b"loop": [], b"again": []}
    for _ in range(2 * count):
        who, number = await soon(there.receive())
        arrived[who.bytes].append(int(number.bytes))
    await soon(sending)
    assert await compute.close()
    again.cancel()
    assert arrived[b"loop"] == list(range(count))
    assert arrived[b"thread"] == sorted(arrived[b"thread"])
    assert sorted(arrived[b"thread"] + arrived[b"again"]) == list(range(count))


async def test_a_thread_is_refused_where_others_wait_or_the_socket_is_closed(sockets: SocketSet) -> None:
    here = sockets.create(zmq.PUSH, "here", 1)
    sockets.connect(here, "tcp://127.0.0.1:9")
    assert here.send_from_thread([b"fits"], copy=True)
    assert not here.send_from_thread([b"does not"], copy=True)
    waiting = asyncio.create_task(here.send([b"waits"], copy=True))
    await asyncio.sleep(0)
    assert not here.send_from_thread([b"behind it"], copy=True)
    here.close(0)
    assert not here.send_from_thread([b"too late"], copy=True)
    with pytest.raises(ChannelClosed):
        await soon(waiting)
