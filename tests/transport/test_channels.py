"""What every transport promises: the same tests in memory and over ZeroMQ."""

from __future__ import annotations

import asyncio

import pytest
import torch

from flowspec.errors import PortInUse
from flowspec.transport.base import ChannelClosed, Transport
from flowspec.wire.frames import encode
from flowspec.wire.messages import Beacon, Close, Credit, Failed, StatusQuery, Verdict
from tests.transport.opened import Opened, eventually, hears, repeating, soon

BEACON = Beacon("incarnation", ("a", "b"))
VERDICT = Verdict("s", 0, 5, 17)


async def test_the_forward_pipe_keeps_order_and_tensors_over_every_hop(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    stages = [await opened.stage(transport, stage.name) for stage in opened.topology.stages]
    hops = [coordinator.forward_out, *(stage.forward_out for stage in stages)]
    for sender, stage in zip(hops, stages, strict=False):
        assert sender is not None
        tensors = [torch.full((16, 4096), float(number), dtype=torch.bfloat16) for number in range(5)]
        for number, tensor in enumerate(tensors):
            await soon(sender.send(Close("s", number), [tensor]))
        for number in range(5):
            envelope = await soon(stage.forward_in.receive())
            assert envelope.message == Close("s", number)
            assert envelope.tensors[0].eq(number).all()
            envelope.tensors[0].zero_()
    assert hops[-1] is None


async def test_the_first_messages_wait_for_a_stage_that_is_not_there_yet(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    for number in range(3):
        await soon(coordinator.forward_out.send(Close("s", number)))
    stage = await opened.stage(transport, "stage-1")
    arrived = [(await soon(stage.forward_in.receive())).message for _ in range(3)]
    assert arrived == [Close("s", number) for number in range(3)]


async def test_every_stage_reaches_the_coordinator_in_its_own_order(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    names = [stage.name for stage in opened.topology.stages]
    for name in names:
        stage = await opened.stage(transport, name)
        for ticket in range(4):
            await soon(stage.return_out.send(Credit(name, ticket)))
    heard: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(12):
        message = (await soon(coordinator.return_in.receive())).message
        assert isinstance(message, Credit)
        heard[message.node].append(message.ticket)
    assert heard == {name: [0, 1, 2, 3] for name in names}


async def test_hints_and_verdicts_reach_all_that_should_hear_them(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    first, middle, tail = [await opened.stage(transport, stage.name) for stage in opened.topology.stages]
    listener = await opened.listener(transport)
    assert tail.verdicts is not None
    assert first.verdicts is middle.verdicts is None
    for channels in (first, middle, listener):
        await hears(channels.broadcasts, coordinator.hints, BEACON)
        await hears(channels.broadcasts, tail.verdicts, VERDICT)


async def test_the_tail_does_not_hear_its_own_verdicts(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    tail = await opened.stage(transport, "stage-3")
    assert tail.verdicts is not None
    async with repeating(tail.verdicts, VERDICT), repeating(coordinator.hints, BEACON):
        for _ in range(5):
            assert (await soon(tail.broadcasts.receive())).message == BEACON


async def test_each_client_gets_its_own_answers(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    clients = [await opened.client(transport) for _ in range(2)]
    for number, client in enumerate(clients):
        await soon(client.send(StatusQuery(f"request-{number}")))
    for _ in clients:
        peer, envelope = await soon(coordinator.clients.receive())
        assert isinstance(envelope.message, StatusQuery)
        assert await coordinator.clients.send(peer, Failed(envelope.message.request, "RequestError", "no"))
    for number, client in enumerate(clients):
        assert (await soon(client.receive())).message == Failed(f"request-{number}", "RequestError", "no")


async def test_sending_to_a_client_that_is_unknown_or_gone_says_so(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    client = await opened.client(transport)
    answer = Failed("r", "RequestError", "no")
    assert not await coordinator.clients.send(b"nobody", answer)
    await soon(client.send(StatusQuery("r")))
    peer, _ = await soon(coordinator.clients.receive())
    assert await coordinator.clients.send(peer, answer)
    await client.close()

    async def refused() -> bool:
        return not await coordinator.clients.send(peer, answer)

    await eventually(refused)
    assert coordinator.clients.statistics().dropped == 2


async def test_a_client_that_does_not_read_never_holds_the_coordinator_up(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    client = await opened.client(transport)
    await soon(client.send(StatusQuery("r")))
    peer, _ = await soon(coordinator.clients.receive())
    long = Failed("r", "RequestError", "x" * 100_000)

    async def full() -> bool:
        return not await coordinator.clients.send(peer, long)

    await eventually(full)


async def test_send_returns_the_bytes_and_statistics_count_them(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    hidden = torch.zeros(16, 4096)
    expected = len(encode(Close("s", 0))[0]) + len(encode(Close("s", 0), [hidden])[0]) + hidden.nbytes
    sent = await coordinator.forward_out.send(Close("s", 0)) + await coordinator.forward_out.send(
        Close("s", 0), [hidden]
    )
    for _ in range(2):
        await soon(stage.forward_in.receive())
    assert sent == expected
    for statistics in (coordinator.forward_out.statistics(), stage.forward_in.statistics()):
        assert (statistics.messages, statistics.bytes, statistics.rejected) == (2, expected, 0)
        assert (statistics.queued, statistics.capacity) == (0, 64)


async def test_close_wakes_whoever_waits_and_may_be_repeated(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    client = await opened.client(transport)
    waiting = [
        asyncio.create_task(coroutine)
        for coroutine in (
            coordinator.return_in.receive(),
            stage.forward_in.receive(),
            stage.broadcasts.receive(),
            client.receive(),
        )
    ]
    router = asyncio.create_task(coordinator.clients.receive())
    await asyncio.sleep(0)
    for channels in (coordinator, stage, client):
        await soon(channels.close())
        await soon(channels.close())
    for task in (*waiting, router):
        with pytest.raises(ChannelClosed):
            await soon(task)
    for after in (
        coordinator.forward_out.send(Close("s", 0)),
        coordinator.hints.send(BEACON),
        stage.forward_in.receive(),
    ):
        with pytest.raises(ChannelClosed):
            await after


async def test_a_cancelled_receive_is_a_cancellation_and_loses_nothing(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    task = asyncio.create_task(stage.forward_in.receive())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(coordinator.forward_out.send(Close("s", 1)))
    assert (await soon(stage.forward_in.receive())).message == Close("s", 1)


async def test_an_address_in_use_is_an_error_that_names_node_and_port(transport: Transport, opened: Opened) -> None:
    await opened.coordinator(transport)
    await opened.stage(transport, "stage-2")
    with pytest.raises(PortInUse, match=f"node stage-2: .*{opened.topology.stages[1].port}"):
        await opened.stage(transport, "stage-2")
    with pytest.raises(PortInUse, match=f"node draft: .*{opened.topology.draft_node.port}"):
        await opened.coordinator(transport)


async def test_a_node_can_be_opened_again_after_it_was_closed(transport: Transport, opened: Opened) -> None:
    coordinator = await opened.coordinator(transport)
    for life in range(3):
        stage = await opened.stage(transport, "stage-1")
        await hears(stage.forward_in, coordinator.forward_out, Close("s", life))
        await hears(stage.broadcasts, coordinator.hints, BEACON)
        await soon(stage.close(0))


async def test_messages_on_the_way_do_not_starve_other_tasks(transport: Transport, opened: Opened) -> None:
    """A receiver that always finds a message must still let others run."""
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    turns = 0
    done = False

    async def other() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    async def send() -> None:
        for number in range(640):
            await coordinator.forward_out.send(Close("s", number))

    counting, sending = asyncio.create_task(other()), asyncio.create_task(send())
    for number in range(640):
        assert (await soon(stage.forward_in.receive())).message == Close("s", number)
    done = True
    await soon(asyncio.gather(counting, sending))
    assert turns >= 20
