"""A drafter that hangs is given up, and one whose process was held up is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import nan
from typing import Any, cast

import pytest

from flowspec.drafting.drafter import Drafter, Unwanted, Wanted
from flowspec.roles import draft_desk
from flowspec.roles.draft_desk import DraftDesk, StepDeadline
from flowspec.runtime.compute import ComputeThread
from flowspec.schedule.events import DrafterLost, Event, GrowTree, TreeGrown
from flowspec.wire.messages import DraftTokens

DEADLINE = 20.0


class Clock:
    """Stands for the module's `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(draft_desk, "time", clock)
    return clock


async def test_a_deadline_that_passed_while_the_process_was_held_up_begins_anew(clock: Clock) -> None:
    rung: list[str] = []
    deadline = StepDeadline(30.0, lambda: rung.append("rung"))
    clock.now += 130.0
    deadline.ring()
    assert not rung, "the drafter had no time to answer either"
    clock.now += 30.1
    deadline.ring()
    assert rung == ["rung"]
    deadline.cancel()


class StuckDrafter:
    """Answers a step when it is let go."""

    name = "stuck"
    taps = ()

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.free = threading.Event()

    def grow(self, command: GrowTree, width: int, wanted: Wanted) -> tuple[()]:
        self.asked.set()
        self.free.wait(DEADLINE)
        return ()

    def close(self, session: str) -> None:
        pass


@asynccontextmanager
async def desk(drafter: StuckDrafter, deadline: float) -> AsyncIterator[tuple[DraftDesk, asyncio.Queue[Event]]]:
    events: asyncio.Queue[Event] = asyncio.Queue()
    compute = ComputeThread("drafter")
    made = DraftDesk(cast(Drafter, drafter), compute, vocab_size=9, deadline=deadline, apply=events.put_nowait)
    try:
        yield made, events
    finally:
        drafter.free.set()
        assert await compute.close(DEADLINE)


async def test_a_drafter_that_hangs_is_given_up() -> None:
    drafter = StuckDrafter()
    async with asyncio.timeout(DEADLINE), desk(drafter, 0.05) as (made, events):
        made.ask(GrowTree("s", 0, (), DraftTokens(), 0))
        assert await events.get() == DrafterLost("s")


class PatientDrafter(StuckDrafter):
    """Is at a step until nobody wants it any more."""

    def grow(self, command: GrowTree, width: int, wanted: Wanted) -> tuple[()]:
        self.asked.set()
        while wanted() and not self.free.wait(0.001):
            pass
        raise Unwanted


async def test_a_step_that_nobody_wants_is_broken_off_and_answered_without_a_word() -> None:
    drafter = PatientDrafter()
    async with asyncio.timeout(DEADLINE), desk(drafter, DEADLINE) as (made, events):
        made.ask(GrowTree("s", 3, (), DraftTokens(), 0))
        made.stop("other", 3)
        made.stop("s", 2)
        assert events.empty()
        made.stop("s", 3)
        answered = await events.get()
        assert isinstance(answered, TreeGrown)
        assert answered.stopped
        assert (answered.session, answered.epoch, answered.children) == ("s", 3, ())
        made.stop("s", 3)


class OddDrafter(StuckDrafter):
    """Answers at once, with what it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def grow(self, command: GrowTree, width: int, wanted: Wanted) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (((0, ((3, -0.5), (9, -1.0), (-1, -1.0), (4, nan))),), ((0, ((3, -0.5),)),)),
        (((0, ((3, "likely"),)),), ()),
        (((0, (("three", -0.5),)),), ()),
        (((0, 3),), ()),
        (None, ()),
    ],
)
async def test_what_is_no_guess_is_left_out_and_what_is_no_answer_is_an_empty_one(answer: Any, known: Any) -> None:
    async with asyncio.timeout(DEADLINE), desk(OddDrafter(answer), DEADLINE) as (made, events):
        made.ask(GrowTree("s", 0, (0,), DraftTokens(), 0))
        answered = await events.get()
        assert isinstance(answered, TreeGrown)
        assert answered.children == known
