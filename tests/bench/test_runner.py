"""Campaigns: who is asked when, what is recorded, what is taken up again, and which runs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowspec.bench.matrix import Contender
from flowspec.bench.pipes import Pipe
from flowspec.bench.records import Log, read_all, read_records
from flowspec.cli.headline import set_aside
from flowspec.errors import ConfigurationError, LimitExceeded, PipelineError
from tests.bench.fake_runs import PLACE, SPEEDS, FakeClient, FakeJudge, campaign, matrix, questions, same_text


async def test_every_question_is_answered_by_all_before_the_next_in_an_order_that_rotates(tmp_path: Path) -> None:
    client = FakeClient()
    await campaign(client, tmp_path / "runs.jsonl").run()
    rounds = [client.measured[start : start + 3] for start in range(0, 9, 3)]
    assert [{prompt for _, prompt in each} for each in rounds] == [{f"question {number}"} for number in range(3)]
    assert all({policy for policy, _ in each} == set(SPEEDS) for each in rounds)
    assert [each[0][0] for each in rounds] == list(SPEEDS)


async def test_a_run_is_of_one_length_with_a_seed_of_its_question(tmp_path: Path) -> None:
    client = FakeClient()
    records = await campaign(client, tmp_path / "runs.jsonl").run()
    asked = [options for _, options in client.asked if "seed" in options]
    assert all(options["ignore_eos"] and options["max_new_tokens"] == 9 for options in asked)
    assert len({options["seed"] for options in asked}) == 3
    assert len({record.job.seed for record in records}) == 3


async def test_options_of_a_policy_are_sent_as_text(tmp_path: Path) -> None:
    client = FakeClient()
    asked = matrix(contenders=(Contender("chunked", (("tree", "40"),)),))
    await campaign(client, tmp_path / "runs.jsonl", asked).run()
    assert client.asked[-1][1]["policy_options"] == {"tree": "40"}


async def test_each_pipe_and_drafter_is_opened_once(tmp_path: Path) -> None:
    client = FakeClient()
    pipes = (Pipe(stages=2), Pipe(stages=4))
    await campaign(client, tmp_path / "runs.jsonl", matrix(pipes=pipes, drafters=("ngram", "none"))).run()
    assert client.opened == [(pipe, drafter) for pipe in pipes for drafter in ("ngram", "none")]


async def test_an_interrupted_campaign_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    path, patience = tmp_path / "runs.jsonl", [5]

    def breaks_off(prompt: str, options: dict[str, Any]) -> tuple[int, ...]:
        if "seed" in options:
            patience[0] -= 1
            if patience[0] < 0:
                raise PipelineError("a stage was switched off")
        return same_text(prompt, options)

    with pytest.raises(PipelineError, match="switched off"):
        await campaign(FakeClient(breaks_off), path).run()
    with path.open("a") as file:
        file.write('{"model": "de')  # broken off in the middle of a line
    client = FakeClient()
    records = await campaign(client, path).run()
    assert len(client.measured) == 4
    assert len(records) == len(read_records(path)) == 9
    again = FakeClient()
    assert await campaign(again, path).run() == records
    assert again.asked == again.opened == []


async def test_other_questions_or_other_options_are_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    await campaign(FakeClient(), path).run()
    for changed in (matrix(new_tokens=8), matrix(seed=3), matrix(temperatures=(0.5,)), matrix(questions("other"))):
        client = FakeClient()
        await campaign(client, path, changed).run()
        assert len(client.measured) == 9


async def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records = await campaign(FakeClient(), path).run()
    assert read_all([path, path]) == records
    line = json.loads(path.read_text().splitlines()[0])
    wanted = "seed versions commit machine policy options drafter temperature set question token_ids seconds stats"
    assert set(wanted.split()) <= set(line)
    assert records[0].place == PLACE


async def test_unequal_tokens_are_refused_unless_both_streams_are_the_models_own(tmp_path: Path) -> None:
    def differs(prompt: str, options: dict[str, Any]) -> tuple[int, ...]:
        tokens = same_text(prompt, options)
        return (*tokens[:-1], 7777) if options["policy"] == "chunked" else tokens

    with pytest.raises(PipelineError, match="wrote different tokens for question 0") as caught:
        await campaign(FakeClient(differs), tmp_path / "a.jsonl", judge=FakeJudge("no shown tie")).run()
    assert "autoregressive and chunked" in str(caught.value)
    assert "no shown tie" in str(caught.value)
    judge = FakeJudge()
    records = await campaign(FakeClient(differs), tmp_path / "b.jsonl", judge=judge).run()
    assert {record.job.policy for record in records if not record.agrees} == {"chunked", "flowspec", "autoregressive"}
    # The model is asked once for each text that there is.
    assert len(judge.seen) == 6
    assert {written.prompt for written in judge.seen} == {(1, 2, 3)}


async def test_a_stream_from_the_file_counts_as_the_first(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    await campaign(FakeClient(), path, matrix(contenders=(Contender("autoregressive"),))).run()
    client = FakeClient(lambda prompt, options: same_text(prompt + "!", options))
    with pytest.raises(PipelineError, match="autoregressive and chunked"):
        await campaign(client, path, matrix(contenders=(Contender("chunked"),)), FakeJudge("no tie")).run()


async def test_a_shorter_run_agrees_as_far_as_it_goes(tmp_path: Path) -> None:
    judge = FakeJudge("never asked")
    contenders = (Contender("flowspec"), Contender("autoregressive", new_tokens=4))
    records = await campaign(FakeClient(), tmp_path / "runs.jsonl", matrix(contenders=contenders), judge).run()
    assert {(record.job.policy, len(record.token_ids)) for record in records} == {
        ("flowspec", 9),
        ("autoregressive", 4),
    }
    assert judge.seen == []


async def test_all_of_a_stream_is_compared_also_behind_a_shorter_first_one(tmp_path: Path) -> None:
    def differs(prompt: str, options: dict[str, Any]) -> tuple[int, ...]:
        tokens = same_text(prompt, options)
        return (*tokens[:-1], 7777) if options["policy"] == "chunked" else tokens

    contenders = (Contender("autoregressive", new_tokens=4), Contender("flowspec"), Contender("chunked"))
    asked, path = matrix(questions(count=1), contenders=contenders), tmp_path / "runs.jsonl"
    with pytest.raises(PipelineError, match="flowspec and chunked wrote different tokens"):
        await campaign(FakeClient(differs), path, asked, judge=FakeJudge("no tie")).run()
    # What the file holds of the two is enough for a campaign that is taken up again.
    with pytest.raises(PipelineError, match="flowspec and chunked wrote different tokens"):
        await campaign(FakeClient(differs), path, asked, judge=FakeJudge("no tie")).run()


async def test_a_run_that_ends_early_is_refused(tmp_path: Path) -> None:
    client = FakeClient(lambda prompt, options: same_text(prompt, options)[:5])
    with pytest.raises(PipelineError, match="wrote 5 tokens for question 0 of own, not 9"):
        await campaign(client, tmp_path / "runs.jsonl").run()


async def test_a_question_over_a_limit_is_skipped_and_told(tmp_path: Path) -> None:
    def too_long(prompt: str, options: dict[str, Any]) -> tuple[int, ...]:
        if prompt == "question 1":
            raise LimitExceeded("context", 3000, 2048)
        return same_text(prompt, options)

    asked = campaign(FakeClient(too_long), tmp_path / "runs.jsonl")
    assert len(await asked.run()) == 6
    assert asked.skipped == ["question 1 of own: context is 2048, the request asks for 3000"]


def test_a_line_that_is_no_run_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for line, told in (("nonsense", "Expecting value"), ("{}", "`model` is missing"), ("[]", "indices")):
        path.write_text(line + "\n")
        with pytest.raises(ConfigurationError, match=r"runs\.jsonl:1: ") as caught:
            Log(path)
        assert told in str(caught.value)


def test_a_file_that_holds_no_runs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.json"
    for text in ('{"precious": 1}', "notes", '{"model": "x"}\nnotes'):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"precious\.json:"):
            Log(path)
        with pytest.raises(ConfigurationError, match=r"precious\.json:"):
            set_aside(path, print)
        assert path.read_text() == text


async def test_runs_that_are_to_be_made_again_are_kept_beside_them(tmp_path: Path) -> None:
    path, told = tmp_path / "runs.jsonl", []
    for number in (1, 2):
        await campaign(FakeClient(), path).run()
        text = path.read_text()
        set_aside(path, told.append)
        assert not path.exists()
        assert (tmp_path / f"runs.{number}.jsonl").read_text() == text
    set_aside(path, told.append)
    assert len(told) == 2
    assert "9 runs" in told[0]


async def test_a_run_without_a_figure_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    await campaign(FakeClient(), path).run()
    line = json.loads(path.read_text().splitlines()[0])
    del line["stats"]["drafted"]
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigurationError, match="`drafted` is missing"):
        Log(path)


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Log(tmp_path / "file" / "runs.jsonl")
