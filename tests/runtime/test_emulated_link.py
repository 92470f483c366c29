"""Emulated links on a clock that stands still: order, rate, latency, jitter, and what a message is charged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowspec.runtime.alarm import Alarm
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulated_link import CAPACITY, EmulatedSender, LinkSchedule
from flowspec.topology import LinkEmulation
from flowspec.topology.link_calendar import HEADER_BYTES
from flowspec.transport.base import ChannelStatistics
from flowspec.wire.messages import Cancelled, Message


class Wire:
    """A clock that only a wait moves, and what was delivered at which time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.delivered: list[tuple[float, Message]] = []
        self.complete = asyncio.Event()
        self.wanted = 0

    async def until(self, when: float) -> None:
        self.now = max(self.now, when)

    async def send(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int:
        self.delivered.append((self.now, message))
        if len(self.delivered) == self.wanted:
            self.complete.set()
        return 0

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(len(self.delivered), 0, 0, 0, 0, 1)


@asynccontextmanager
async def linked(link: LinkEmulation, wanted: int) -> AsyncIterator[tuple[Wire, EmulatedSender]]:
    wire = Wire()
    wire.wanted = wanted
    sender = EmulatedSender(wire, link, clock=lambda: 0.0, until=wire.until)
    pump = asyncio.ensure_future(sender.pump())
    try:
        yield wire, sender
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def test_messages_leave_one_after_the_other_at_the_links_rate() -> None:
    hidden = torch.zeros(2, 100)  # 800 bytes, with the header 1000
    async with linked(LinkEmulation(latency_ms=5, rate_mbit=8), 3) as (wire, sender):
        for number in range(3):
            assert await sender.send(Cancelled(str(number), 0), (hidden,)) == 1000
        async with asyncio.timeout(30):
            await wire.complete.wait()
    assert [message for _, message in wire.delivered] == [Cancelled(str(number), 0) for number in range(3)]
    assert [when for when, _ in wire.delivered] == pytest.approx([0.006, 0.007, 0.008])


async def test_a_link_is_charged_for_the_emulated_models_hidden_states() -> None:
    link = LinkEmulation(rate_mbit=8, bytes_per_token=4900)
    async with linked(link, 1) as (wire, sender):
        assert await sender.send(Cancelled("a", 0), (torch.zeros(2, 1),)) == HEADER_BYTES + 2 * 4900
        async with asyncio.timeout(30):
            await wire.complete.wait()
    assert wire.delivered[0][0] == pytest.approx(0.01)


async def test_bytes_that_are_no_hidden_states_weigh_what_they_are() -> None:
    link = LinkEmulation(rate_mbit=8, bytes_per_token=4900, message_ms=2)
    async with linked(link, 1) as (wire, sender):
        assert await sender.send(Cancelled("probe", 0), (torch.zeros(9800, dtype=torch.uint8),)) == 10_000
        async with asyncio.timeout(30):
            await wire.complete.wait()
    assert wire.delivered[0][0] == pytest.approx(0.01), "they take the link as long as that, and are not small"


async def test_a_small_message_keeps_nobody_waiting_and_overtakes_nobody() -> None:
    link = LinkEmulation(latency_ms=1, rate_mbit=8, message_ms=2)
    async with linked(link, 3) as (wire, sender):
        await sender.send(Cancelled("small", 0))
        await sender.send(Cancelled("large", 0), (torch.zeros(1, 2450),))
        await sender.send(Cancelled("late", 0))
        async with asyncio.timeout(30):
            await wire.complete.wait()
    assert [when for when, _ in wire.delivered] == pytest.approx([0.002, 0.011, 0.011])


async def test_messages_of_another_thread_leave_in_order_with_the_loops_and_wait_their_turn() -> None:
    numbers = range(4 * CAPACITY)
    # A wire that takes nothing yet: what is on the link stays there.
    opened = asyncio.Event()
    wire = Wire()
    wire.wanted = len(numbers) + 1

    async def until(when: float) -> None:
        await opened.wait()

    sender = EmulatedSender(wire, LinkEmulation(latency_ms=5), clock=lambda: 0.0, until=until)
    pump = asyncio.ensure_future(sender.pump())
    compute = ComputeThread("compute")
    try:
        sent = [number for number in numbers if await compute.run(sender.send_from_thread, Cancelled(str(number), 0))]
        assert sent == list(numbers[:CAPACITY]), "there is room for so many"
        waits = asyncio.ensure_future(sender.send(Cancelled("waits", 0)))
        await asyncio.sleep(0)
        opened.set()
        async with asyncio.timeout(30):
            assert await waits == HEADER_BYTES
            for number in numbers[CAPACITY:]:
                if not await compute.run(sender.send_from_thread, Cancelled(str(number), 0)):
                    await sender.send(Cancelled(str(number), 0))
            await wire.complete.wait()
        expected = [*(str(number) for number in sent), "waits", *(str(number) for number in numbers[CAPACITY:])]
        assert [message for _, message in wire.delivered] == [Cancelled(name, 0) for name in expected]
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await compute.close()


def test_jitter_is_drawn_from_the_seed_and_bounded() -> None:
    link = LinkEmulation(latency_ms=10, jitter_ms=4)

    def arrivals(seed: str) -> list[float]:
        schedule = LinkSchedule(link, seed)
        return [schedule.arrival(float(second)) - second for second in range(50)]

    assert arrivals("a") == arrivals("a")
    assert arrivals("a") != arrivals("b")
    assert all(0.010 <= each <= 0.0141 for each in arrivals("a"))
    assert max(arrivals("a")) - min(arrivals("a")) > 0.002


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 32)), min_size=1, max_size=40),
    st.floats(0, 20),
    st.none() | st.floats(0.1, 1000),
    st.none() | st.floats(0, 20),
)
def test_order_is_kept_whatever_jitters(
    sends: list[tuple[float, int]], jitter: float, rate: float | None, message: float | None
) -> None:
    link = LinkEmulation(latency_ms=3, jitter_ms=jitter, rate_mbit=rate, message_ms=message, bytes_per_token=1000)
    schedule, now, arrivals = LinkSchedule(link), 0.0, []
    for pause, tokens in sends:
        now += pause
        arrivals.append(schedule.arrival(now, tokens))
        assert arrivals[-1] >= now
    assert arrivals == sorted(arrivals)


async def test_an_alarm_rings_at_once_for_what_is_over_and_ends_with_its_block() -> None:
    async with asyncio.timeout(30):
        async with Alarm("test alarm") as alarm:
            await alarm.until(0.0)
            waiting = asyncio.ensure_future(alarm.until(float(2**31)))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
