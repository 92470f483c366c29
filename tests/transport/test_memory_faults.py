"""Faults of the memory transport: as many as asked for, only where asked for, and the same in every run."""

from __future__ import annotations

import asyncio

import pytest

from flowspec.errors import MalformedMessage
from flowspec.topology import Topology
from flowspec.transport.base import ChannelClosed
from flowspec.transport.memory import Depths, Faults, MemoryTransport
from flowspec.wire.messages import Beacon, Close, Credit, Message, Probe, Verdict
from tests.transport.opened import Opened, soon

COUNT = 200


async def heard(topology: Topology, faults: Faults, seed: int = 0, listeners: int = 1) -> list[list[int]]:
    """Frontiers of the verdicts that each listener hears, of 200 sent in order, and a last beacon."""
    transport = MemoryTransport(seed=seed, faults=faults)
    tail = await transport.open_stage(topology, topology.stages[-1].name)
    ears = [await transport.open_listener(topology) for _ in range(listeners)]
    assert tail.verdicts is not None
    received: list[list[int]] = [[] for _ in ears]
    for frontier in range(COUNT):
        await tail.verdicts.send(Verdict("s", 0, frontier, 0))
        for ear, frontiers in zip(ears, received, strict=True):
            for _ in range(ear.broadcasts.statistics().queued):
                message = (await soon(ear.broadcasts.receive())).message
                assert isinstance(message, Verdict)
                frontiers.append(message.frontier)
    for channels in (tail, *ears):
        await channels.close()
    return received


async def test_without_faults_every_verdict_arrives_once_in_order(topology: Topology) -> None:
    assert await heard(topology, Faults()) == [list(range(COUNT))]


async def test_all_verdicts_can_be_dropped(topology: Topology) -> None:
    assert await heard(topology, Faults(dropped=1.0)) == [[]]


async def test_some_verdicts_can_be_dropped(topology: Topology) -> None:
    [frontiers] = await heard(topology, Faults(dropped=0.5))
    assert sorted(set(frontiers)) == frontiers
    assert COUNT // 4 < len(frontiers) < 3 * COUNT // 4


async def test_verdicts_can_be_doubled(topology: Topology) -> None:
    [frontiers] = await heard(topology, Faults(doubled=1.0))
    assert frontiers == [frontier for frontier in range(COUNT) for _ in range(2)]


async def test_verdicts_can_be_delayed_and_so_reordered_by_a_bounded_number_of_messages(topology: Topology) -> None:
    [frontiers] = await heard(topology, Faults(delayed=0.5, longest_delay=4))
    assert frontiers != sorted(frontiers)
    assert len(set(frontiers)) == len(frontiers)
    assert set(frontiers) >= set(range(COUNT - 5))
    for frontier in range(COUNT - 5):
        overtaken_by = [other for other in frontiers[: frontiers.index(frontier)] if other > frontier]
        assert len(overtaken_by) <= 2 * 4


async def test_neighbours_can_be_reordered(topology: Topology) -> None:
    [frontiers] = await heard(topology, Faults(reordered=0.5))
    assert frontiers != sorted(frontiers)
    assert set(frontiers) >= set(range(COUNT - 1))
    assert all(abs(place - frontier) <= 1 for place, frontier in enumerate(frontiers))


async def test_faults_can_be_changed_while_the_network_runs(opened: Opened) -> None:
    transport = MemoryTransport()
    tail = await opened.stage(transport, "stage-3")
    listener = await opened.listener(transport)
    assert tail.verdicts is not None
    for frontier, faults in enumerate((Faults(), Faults(dropped=1.0), Faults())):
        transport.faults = faults
        await tail.verdicts.send(Verdict("s", 0, frontier, 0))
    frontiers = [(await soon(listener.broadcasts.receive())).message for _ in range(2)]
    assert frontiers == [Verdict("s", 0, 0, 0), Verdict("s", 0, 2, 0)]


async def test_the_same_seed_gives_the_same_faults_and_another_seed_others(topology: Topology) -> None:
    faults = Faults(dropped=0.2, doubled=0.2, delayed=0.2, reordered=0.2)
    assert await heard(topology, faults, seed=1) == await heard(topology, faults, seed=1)
    assert await heard(topology, faults, seed=1) != await heard(topology, faults, seed=2)


async def test_every_listener_has_its_own_luck(topology: Topology) -> None:
    first, second = await heard(topology, Faults(dropped=0.5), listeners=2)
    assert first != second


async def test_beacons_and_probes_are_spared_unless_they_are_meant(opened: Opened) -> None:
    spared, hit = Faults(dropped=1.0), Faults(dropped=1.0, affects=lambda message: isinstance(message, Beacon))
    for faults, arriving in ((spared, [Beacon("i", ()), Probe("verdicts", 1)]), (hit, [Probe("verdicts", 1)])):
        transport = MemoryTransport(faults=faults)
        coordinator = await opened.coordinator(transport)
        listener = await opened.listener(transport)
        await coordinator.hints.send(Beacon("i", ()))
        await coordinator.hints.send(Probe("verdicts", 1))
        for message in arriving:
            assert (await soon(listener.broadcasts.receive())).message == message
        assert listener.broadcasts.statistics().queued == 0


async def test_segments_can_be_lost_at_a_chosen_hop(opened: Opened) -> None:
    asked: list[tuple[int, str]] = []

    def lose(hop: int, message: Message) -> bool:
        asked.append((hop, message.kind))
        return hop == 1 and message == Close("s", 1)

    transport = MemoryTransport(faults=Faults(drop_forward=lose))
    coordinator = await opened.coordinator(transport)
    first, second = [await opened.stage(transport, name) for name in ("stage-1", "stage-2")]
    assert first.forward_out is not None
    for epoch in range(3):
        await coordinator.forward_out.send(Close("s", epoch))
        await first.forward_out.send((await soon(first.forward_in.receive())).message)
        await first.return_out.send(Credit("stage-1", epoch))
    assert [(await soon(second.forward_in.receive())).message for _ in range(2)] == [Close("s", 0), Close("s", 2)]
    assert second.forward_in.statistics().queued == 0
    assert asked == [(0, "close"), (1, "close")] * 3


async def test_every_message_can_be_observed(opened: Opened) -> None:
    seen: list[tuple[str, str, str]] = []
    faults = Faults(dropped=1.0, observe=lambda channel, sender, message: seen.append((channel, sender, message.kind)))
    transport = MemoryTransport(faults=faults)
    coordinator = await opened.coordinator(transport)
    tail = await opened.stage(transport, "stage-3")
    assert tail.verdicts is not None
    await coordinator.forward_out.send(Close("s", 0))
    await tail.verdicts.send(Verdict("s", 0, 1, 2))
    await tail.return_out.send(Credit("stage-3", 1))
    await coordinator.hints.send(Beacon("i", ()))
    assert seen == [
        ("forward", "draft", "close"),
        ("verdicts", "stage-3", "verdict"),
        ("return", "stage-3", "credit"),
        ("hints", "draft", "beacon"),
    ]


async def test_a_full_pipe_holds_its_sender_up_at_its_capacity(opened: Opened) -> None:
    transport = MemoryTransport(depths=Depths(pipe=3))
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")

    async def send(session: str) -> None:
        for epoch in range(5):
            await coordinator.forward_out.send(Close(session, epoch))

    sending = asyncio.create_task(send("s"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sending.done()
    assert stage.forward_in.statistics().queued == 3
    assert coordinator.forward_out.statistics().queued == 1
    assert [(await soon(stage.forward_in.receive())).message for _ in range(5)] == [Close("s", n) for n in range(5)]
    await soon(sending)


async def test_tasks_that_share_a_sender_keep_their_order_when_it_is_full(opened: Opened) -> None:
    transport = MemoryTransport(depths=Depths(pipe=1))
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    tasks = [asyncio.create_task(coordinator.forward_out.send(Close("s", epoch))) for epoch in range(10)]
    for epoch in range(10):
        assert (await soon(stage.forward_in.receive())).message == Close("s", epoch)
    await soon(asyncio.gather(*tasks))


async def test_closing_wakes_a_sender_that_waits_for_room(opened: Opened) -> None:
    coordinator = await opened.coordinator(MemoryTransport(depths=Depths(pipe=1)))
    await coordinator.forward_out.send(Close("s", 0))
    waiting = asyncio.create_task(coordinator.forward_out.send(Close("s", 1)))
    await asyncio.sleep(0)
    await coordinator.close()
    with pytest.raises(ChannelClosed):
        await soon(waiting)


async def test_what_waited_for_a_stage_that_is_replaced_is_lost_and_its_sender_goes_on(opened: Opened) -> None:
    transport = MemoryTransport(depths=Depths(pipe=2))
    coordinator = await opened.coordinator(transport)
    stage = await opened.stage(transport, "stage-1")
    for epoch in range(2):
        await coordinator.forward_out.send(Close("old", epoch))
    waiting = asyncio.create_task(coordinator.forward_out.send(Close("new", 0)))
    await asyncio.sleep(0)
    await stage.close()
    stage = await opened.stage(transport, "stage-1")
    assert (await soon(stage.forward_in.receive())).message == Close("new", 0)
    await soon(waiting)


async def test_a_listener_that_does_not_read_loses_the_newest(opened: Opened) -> None:
    transport = MemoryTransport(depths=Depths(broadcast=2))
    coordinator = await opened.coordinator(transport)
    listener = await opened.listener(transport)
    for number in range(4):
        await coordinator.hints.send(Beacon(f"{number}", ()))
    assert listener.broadcasts.statistics().queued == 2
    assert coordinator.hints.statistics().dropped == 2
    assert [(await soon(listener.broadcasts.receive())).message for _ in range(2)] == [Beacon("0", ()), Beacon("1", ())]


async def test_a_message_that_is_wrong_is_refused_by_its_sender(opened: Opened) -> None:
    coordinator = await opened.coordinator(MemoryTransport())
    with pytest.raises(MalformedMessage, match=r"Close\.epoch"):
        await coordinator.forward_out.send(Close("s", True))
