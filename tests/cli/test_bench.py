"""`flowspec bench` on the command line: several values to an option, and mistakes told before anything starts."""

from __future__ import annotations

import asyncio
import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from flowspec.bench.pipes import Pipe
from flowspec.bench.records import read_records
from flowspec.cli.headline import BEST_DRAFTER
from flowspec.cli.many import spread
from flowspec.errors import LimitExceeded
from tests.bench.fake_runs import FakeClient, campaign
from tests.cli.running import run_main

COMMANDS = ("run", "report", "headline", "demo")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    asyncio.run(campaign(FakeClient(), path).run())
    return path


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_help_fits_eighty_columns(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, _ = run_main(capsys, "bench", *arguments, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_what_follows_a_repeated_option_are_further_values_of_it() -> None:
    given = ["--t", "0", "1", "--once", "x", "--t", "2", "--flag"]
    assert spread(given, {"--t"}) == ["--t", "0", "--t", "1", "--once", "x", "--t", "2", "--flag"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompts", "/no/such/file.jsonl"), "/no/such/file.jsonl cannot be read"),
        (("--policies", "flowspec", "psychic"), "no policy 'psychic'"),
        (("--sweep", "chunked.colour=1"), "no option 'colour'"),
        (("--sweep", "chunked"), "POLICY.OPTION=VALUE"),
        (("--policies", "flowspec", "--sweep", "chunked.tree=40"), "does not take part"),
        (("--option", "chunked.tree=zero"), "cannot be 'zero'"),
        (("--temperatures", "0", "warm"), "'warm' is no number"),
        (("--stages", "0"), "--stages: 0"),
        (("--stages", "9"), "9 stages for 8 layers"),
        (("--profiles", "paper-8b"), "no profile 'paper-8b'"),
        (("--link-rates", "50"), "name a profile"),
        (("--drafters", "oracle"), "oracle"),
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--tokens", "1"), "at least 2"),
        (("--repeats", "0"), "0 repeats"),
        (("--first", "8"), "8 questions"),
        (("--connect", "127.0.0.1:1", "--stages", "2"), "--stages cannot be given with --connect"),
        (("--connect", "127.0.0.1:1", "--slow-stage", "1"), "--slow-stage cannot be given with --connect"),
        (("--connect", "127.0.0.1:1", "--model", "demo"), "--model cannot be given with --connect"),
        (("--tokens-per-round", "5"), "give --model synthetic"),
        (("--model", "synthetic", "--profiles", "paper-7b", "--tokens-per-round", "0"), "tokens_per_round"),
        (("--profiles", "paper-7b", "--slow-stage", "0"), "cannot be 0 times slower"),
        (("--profiles", "paper-7b", "--slow-stage", "nan"), "cannot be nan times slower"),
        (("--temperatures", "-1"), "a temperature of -1"),
        (("--temperatures", "nan"), "a temperature of nan"),
        (("--first", "-1"), "questions -1 to the end of code"),
        (("--stages", "inf"), "--stages: inf is no whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    output = tmp_path / "runs.jsonl"
    code, out, err = run_main(capsys, "bench", "run", *arguments, "--output", str(output))
    assert code in (2, 3, 4)
    assert told in err
    assert out == ""
    assert "Traceback" not in err
    assert not output.exists()


def test_a_bad_line_of_questions_is_told_with_file_and_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text('{"question_id": 1, "turns": ["fine"]}\n{"question_id": 2}\n')
    code, _, err = run_main(capsys, "bench", "run", "--prompts", str(path))
    assert code == 2
    assert f"{path}:2: " in err


def test_a_report_shows_what_was_recorded(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, out, _ = run_main(capsys, "bench", "report", str(runs))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "2.00x" in out


def test_a_report_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "there are no runs" in run_main(capsys, "bench", "report", str(empty))[2]
    assert "cannot be read" in run_main(capsys, "bench", "report", str(tmp_path / "none.jsonl"))[2]
    empty.write_text("nonsense\n")
    assert f"{empty}:1: " in run_main(capsys, "bench", "report", str(empty))[2]


def test_plots_without_matplotlib_are_an_error_that_names_the_extra(
    capsys: pytest.CaptureFixture[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    code, out, err = run_main(capsys, "bench", "report", str(runs), "--plots", str(runs.parent / "plots"))
    assert code == 2
    assert out == ""
    assert "flowspec[plots]" in err


def test_plots_are_drawn_as_png_and_svg(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    pytest.importorskip("matplotlib")
    code, _, err = run_main(capsys, "bench", "report", str(runs), "--plots", str(runs.parent / "plots"))
    assert code == 0, err
    drawn = sorted(path.name for path in (runs.parent / "plots").iterdir())
    assert drawn == [f"{name}-1.{kind}" for name in ("acceptance", "speed-up") for kind in ("png", "svg")]


def test_a_campaign_over_a_pipe_ends_in_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, output = FakeClient(), tmp_path / "runs.jsonl"
    monkeypatch.setattr("flowspec.bench.pipes.open_pipe", client.open)
    arguments = ["--policies", "flowspec", "chunked", "--prompts", "code", "chat", "--last", "1", "--temperatures"]
    code, out, err = run_main(capsys, "bench", "run", *arguments, "0", "1", "--tokens", "9", "--output", str(output))
    assert code == 0, err
    assert len(read_records(output)) == 2 * 2 * 2 * 2
    assert client.opened == [(Pipe(), "auto")]
    assert "temperature 1" in out


def test_a_campaign_that_measured_nothing_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(prompt: str, options: dict[str, object]) -> tuple[int, ...]:
        if "seed" in options:
            raise LimitExceeded("limits.max_new_tokens", 20_000, 4096)
        return (1,) * 4

    monkeypatch.setattr("flowspec.bench.pipes.open_pipe", FakeClient(too_long).open)
    asked = ["--policies", "flowspec", "--prompts", "code", "--tokens", "20000"]
    code, out, err = run_main(capsys, "bench", "run", *asked, "--output", str(tmp_path / "runs.jsonl"))
    assert (code, out) == (2, "")
    assert "nothing was measured" in err


def test_the_demo_campaign_ends_in_one_json_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowspec.bench.pipes.open_pipe", FakeClient().open)
    arguments = ["--policies", "flowspec", "chunked", "--prompts", "code", "--json", "--tokens", "9"]
    code, out, err = run_main(capsys, "bench", "demo", *arguments, "--output", str(tmp_path / "runs.jsonl"))
    assert code == 0, err
    assert out.count("\n") == 1
    found = json.loads(out)[f"4 stages, paper-7b, drafter {BEST_DRAFTER}"]["temperature_0"]
    assert found["vs_chunked"] == pytest.approx(2)
    assert found["vs_chunked_ci"] == pytest.approx([2, 2])
    assert found["chunked_best"] == {}
