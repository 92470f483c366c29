"""A short soak: everything is exact and nothing is left behind; and what would be wrong is seen."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from flowspec.bench.awake_clock import HELD_UP_SECONDS, AwakeClock
from flowspec.bench.soak import CLIENTS, SESSIONS, STAGES, excess, soak
from flowspec.bench.soak_clients import ManneredChannel, agrees
from flowspec.bench.soak_outcome import Course, Outcome
from flowspec.bench.soak_requests import OUTPUT_LENGTHS, PROMPT_LENGTHS, SAMPLINGS, soak_requests
from flowspec.bench.soak_samples import TASKS, Sample
from flowspec.bench.trend import ALLOWED_BYTES, Trend
from flowspec.client import Generation
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import Cancel, Message, StatusQuery

DEADLINE = 240.0
QUIET = Sample(80_000_000, 90_000_000, 35, 8, {"flowspec_sessions": 0.0, TASKS: 9.0})
TRUTH = Generation("abc", (1, 2, 3), (7,), "length", 0, None)
ENDED = {"requests": 9, "exact": 6, "cancelled": 2, "disconnected": 1, "refused": 3}
FAILED = {"wrong": 0, "errors": 0, "hung": 0}


@pytest.mark.slow
async def test_under_load_everything_is_exact_and_nothing_is_left_behind() -> None:
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE):
        outcome = await soak(0.1, 1, lines.append, soak_requests(1)[::5])
    told = outcome.as_values()
    assert {key: told[key] for key in (*FAILED, "leaked")} == {**FAILED, "leaked": 0}, outcome.leaks
    assert told["exact"] >= SESSIONS
    assert told["refused"] > 0
    assert sum(told["by_end"].values()) == told["exact"]
    assert sum(told["by_policy"].values()) == told["requests"]
    assert told["requests"] == sum(told[key] for key in ("exact", "cancelled", "disconnected"))
    assert set(told["memory"]) == {"draft", CLIENTS, *(f"stage-{number + 1}" for number in range(STAGES))}
    assert all(each["after_warm_up_mb"] > 0 for each in told["memory"].values())
    assert len(outcome.table()) == 2 + len(told["memory"])
    assert lines


def outcome_of(**changes: int) -> Outcome:
    course = Course(Trend(1440.0, 80e6, 80e6, 81e6, 0.0), (90_000_000, 91_000_000), 35, 8, 5000)
    ended = {**ENDED, **FAILED, "tokens": 100, **changes}
    return Outcome(
        30.0, ended, {"draft": course}, {"draft": (35, 35)}, {"draft": (8, 8)}, {"flowspec": 9}, {"length": 6}, 0
    )


@pytest.mark.parametrize("trouble", ["wrong", "errors", "hung"])
def test_trouble_makes_a_soak_unsound(trouble: str) -> None:
    assert outcome_of().sound
    assert not outcome_of(**{trouble: 1}).sound


def test_a_soak_in_which_something_grew_or_was_left_or_nothing_ended_is_unsound() -> None:
    assert not outcome_of(exact=0).sound
    left = outcome_of()
    left.leaks.append("1 threads at draft")
    assert not left.sound
    grown = outcome_of()
    course = grown.courses["draft"]
    grown.courses = {"draft": replace(course, memory=replace(course.memory, slope=5000.0))}
    assert grown.growing == ["draft"]
    assert not grown.sound


def test_how_fine_a_leak_is_seen_is_told() -> None:
    course = outcome_of().courses["draft"]
    assert course.finest_leak == ALLOWED_BYTES / 5000
    assert course.finest_leak < 1024


def test_what_is_left_is_named() -> None:
    assert excess("draft", QUIET, QUIET) == []
    assert excess("draft", QUIET, None) == []
    more = Sample(80_000_000, 90_000_000, 36, 10, {"flowspec_sessions": 2.0, TASKS: 12.0})
    assert excess("draft", more, QUIET) == [
        "2 flowspec_sessions at draft",
        "1 open files at draft",
        "2 threads at draft",
        "3 tasks at draft",
    ]


def test_an_output_has_to_be_the_true_one_and_a_broken_off_one_its_beginning() -> None:
    assert agrees(TRUTH, TRUTH)
    part = replace(TRUTH, text="ab", token_ids=(1, 2))
    assert agrees(replace(part, finish_reason=None), TRUTH)
    assert not agrees(part, TRUTH)
    assert not agrees(replace(part, finish_reason=None, token_ids=(1, 3)), TRUTH)
    assert not agrees(replace(part, finish_reason=None, text="bc"), TRUTH)
    assert not agrees(replace(TRUTH, finish_reason="stop"), TRUTH)


def test_requests_are_short_and_long_greedy_and_sampled_and_the_same_for_a_seed() -> None:
    requests = soak_requests(4)
    assert requests == soak_requests(4) != soak_requests(5)
    assert {len(each.prompt_token_ids) for each in requests} >= set(PROMPT_LENGTHS)
    assert {each.max_new_tokens for each in requests} >= set(OUTPUT_LENGTHS)
    assert all(sampling in [each.sampling for each in requests] for sampling in SAMPLINGS)
    assert any(each.stop for each in requests)
    assert any(not each.ignore_eos for each in requests)


class Recorder:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.closed_within: float | None = None

    async def send(self, message: Message) -> int:
        self.sent.append(message)
        return 1

    async def receive(self) -> Envelope:
        return Envelope(StatusQuery("x"), ())

    async def close(self, seconds: float = 0.5) -> None:
        self.closed_within = seconds


async def test_who_vanishes_says_nothing_and_who_is_slow_hears_all() -> None:
    for manner, expected, seconds in (("vanishing", 1, 0.0), ("slow", 2, 0.5)):
        channel = Recorder()
        mannered = ManneredChannel(channel, manner)
        for message in (StatusQuery("a"), Cancel("a")):
            await mannered.send(message)
        await mannered.close()
        assert len(channel.sent) == expected
        assert channel.closed_within == seconds
        assert (await mannered.receive()).message == StatusQuery("x")


async def test_a_clock_that_was_held_up_loses_no_patience() -> None:
    clock = AwakeClock()
    async with clock.patience(10.0):
        clock.tick(1000.0)
        await asyncio.sleep(0)
    assert clock.now == HELD_UP_SECONDS
    assert clock.held_up == 1
    clock.tick(0.5)
    assert clock.held_up == 1


async def test_a_clock_goes_by_itself() -> None:
    clock = AwakeClock()

    async def wait_in_vain() -> None:
        async with clock.going(), clock.patience(0.0):
            await asyncio.Event().wait()

    async with asyncio.timeout(DEADLINE):
        with pytest.raises(TimeoutError):
            await wait_in_vain()
    assert clock.now > 0.0


async def test_patience_ends_when_it_was_awake_for_too_long() -> None:
    clock = AwakeClock()

    async def wait_in_vain() -> None:
        async with clock.patience(1.0):
            clock.tick(1.5)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait_in_vain()
