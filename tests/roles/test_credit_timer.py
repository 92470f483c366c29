"""The news that a segment was begun: put off, never lost, told in order."""

from __future__ import annotations

import asyncio

from flowspec.roles.credit_timer import CreditTimer


async def test_what_need_not_wait_is_told_at_once() -> None:
    told: list[int] = []
    timer = CreditTimer(lambda ticket: 0.0, told.append)
    timer.begun(1)
    timer.begun(2)
    assert told == [1, 2]


async def test_what_may_wait_is_told_later() -> None:
    told: asyncio.Queue[int] = asyncio.Queue()
    timer = CreditTimer(lambda ticket: 0.001, told.put_nowait)
    timer.begun(7)
    assert told.empty()
    async with asyncio.timeout(10):
        assert await told.get() == 7


async def test_the_next_segment_ends_the_wait_of_the_one_before() -> None:
    told: list[int] = []
    timer = CreditTimer(lambda ticket: 60.0 if ticket == 1 else 0.0, told.append)
    timer.begun(1)
    assert told == []
    timer.begun(2)
    assert told == [1, 2]


async def test_a_closed_timer_tells_nothing_more() -> None:
    told: list[int] = []
    timer = CreditTimer(lambda ticket: 0.001, told.append)
    timer.begun(1)
    timer.close()
    over = asyncio.get_running_loop().create_future()
    # Timers ring in the order of their moments: when this one has, the other would have.
    asyncio.get_running_loop().call_later(0.01, over.set_result, None)
    await over
    assert told == []
