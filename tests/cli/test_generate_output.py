"""What `flowspec generate` writes where, against a coordinator that says what the test wants."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flowspec.cli.generate import Call, _generate
from flowspec.cli.render import size, statistics_line
from flowspec.errors import PipelineError
from flowspec.topology import Topology
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.messages import GenerationStats
from tests.client.coordinators import PROMPT, STATS, Answer, Conversation, coordinating, two_chunks


async def write(answer: Answer, **changes: Any) -> int:
    topology = Topology.local(stages=1)
    async with coordinating(ZeroMQTransport(), topology, answer):
        settings: dict[str, Any] = {
            "prompt": "hello",
            "options": {},
            "address": topology.client_address,
            "topology": None,
            "check_model": None,
            "dtype": None,
            "connect_timeout": 5.0,
            "as_json": False,
            "check": False,
            "key": None,
            "trace": None,
        }
        return await _generate(Call(**{**settings, **changes}))


async def test_text_goes_to_stdout_and_statistics_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert await write(two_chunks) == 0
    written = capsys.readouterr()
    assert written.out == "abcd\n"
    assert "4 tokens, 8.0/s" in written.err


async def test_json_is_one_object_on_one_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert await write(two_chunks, as_json=True, options={"seed": 5}) == 0
    written = capsys.readouterr()
    assert written.out.count("\n") == 1
    found = json.loads(written.out)
    assert set(found) == {"text", "token_ids", "prompt_token_ids", "finish_reason", "seed", "stats"}
    assert (found["text"], found["token_ids"], found["prompt_token_ids"]) == ("abcd", [1, 2, 3, 4], list(PROMPT))
    assert (found["finish_reason"], found["seed"]) == ("length", 5)
    wanted = """new_tokens seconds tokens_per_second time_to_first_token accepted_per_verdict drafted accepted pruned
        link_bytes"""
    assert set(wanted.split()) <= set(found["stats"])


async def test_text_that_came_before_a_failure_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def break_off(conversation: Conversation) -> None:
        await conversation.start()
        await conversation.chunk(0, "ab", 1, 2)
        await conversation.fail("PipelineError", "stage-2 is lost")

    with pytest.raises(PipelineError, match="stage-2"):
        await write(break_off)
    assert capsys.readouterr().out == "ab\n"


def test_statistics_fit_eighty_columns() -> None:
    large = GenerationStats(99_999, 9999.9, 9999.9, 999.99, 12.34, 99_999, 999_999, 99_999, 999_999, 99_999, 10**12)
    for stats in (STATS, large, replace(large, restarts=9999, resumed=99)):
        assert max(map(len, statistics_line(stats, "length", 2**62).splitlines())) <= 80


def test_statistics_tell_of_a_break_where_there_was_one() -> None:
    assert "interrupted" not in statistics_line(STATS, "length", 1)
    at_a_stage = statistics_line(replace(STATS, restarts=2), "length", 1)
    assert at_a_stage.endswith("seed 1\ninterrupted 2 times, breaks included")
    replaced = statistics_line(replace(STATS, new_tokens=100, restarts=1, resumed=60), "length", 1)
    assert replaced.endswith("interrupted once, breaks included; drafts are of the last 40 tokens")


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (999, "999 B"), (32_500_000, "32.5 MB"), (2**41, "2.2 TB")])
def test_sizes_are_for_people(count: int, shown: str) -> None:
    assert size(count) == shown
