"""`--trace` and `flowspec trace summary`: files that can be read, tables that fit, errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowspec.planning.simulator import simulate
from flowspec.tracing.spans import CAUSES
from flowspec.tracing.summary import summarise
from flowspec.tracing.trace import Trace
from tests.checkpoints import write_checkpoint
from tests.cli.running import run_main
from tests.planning.pipes import LANGUAGE, even
from tests.tracing.made import made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    made().write(path)
    return path


def test_a_summary_fits_eighty_columns_and_holds_the_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run_main(capsys, "trace", "summary", str(file))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for figure in ("1.50 tokens per verdict", "72.0%", "18.0%", "miss", "stage-2", "3.0 kB", "clocks agree to 3.00 ms"):
        assert figure in out, figure


def test_a_summary_is_one_json_object_when_asked(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, out, _ = run_main(capsys, "trace", "summary", str(file), "--json")
    assert code == 0
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads(json.dumps(summarise(Trace.read(file)).as_values()))
    code, out, _ = run_main(capsys, "trace", "summary", str(file), "--json", "--policy", "flowspec")
    assert (code, json.loads(out)["output_tokens"]) == (0, 3)
    code, out, err = run_main(capsys, "trace", "summary", str(file), "--policy", "pipedec")
    assert (code, out) == (2, "")
    assert "it has: flowspec" in err


def test_what_is_no_trace_is_an_error_with_a_hint(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    file.write_text(file.read_text()[:-20])
    for path, told in ((file, "only part of one"), (file.parent / "none", "cannot be read")):
        code, out, err = run_main(capsys, "trace", "summary", str(path))
        assert (code, out) == (2, "")
        assert told in err
        assert "--trace FILE writes one" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("command", [("demo",), ("generate", "--prompt", "x")])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowspec.cluster.LocalCluster.__init__", lambda *_, **__: pytest.fail("nodes were started"))
    code, out, err = run_main(capsys, *command, "--trace", str(tmp_path / "none" / "trace.json"))
    assert (code, out) == (2, "")
    assert "cannot be written" in err


def test_generate_writes_what_its_processes_did(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, file = write_checkpoint(tmp_path / "model", layers=2), tmp_path / "trace.json"
    local = ["--model", str(model), "--stages", "2", "--dtype", "float64", "--ignore-eos", "--max-new-tokens", "16"]
    code, out, err = run_main(capsys, "generate", "--prompt", "the quick brown", "--json", "--trace", str(file), *local)
    assert code == 0, err
    assert str(file) in err
    trace = Trace.read(file)
    assert trace.nodes == ("draft", "stage-1", "stage-2")
    assert trace.metadata["incomplete"] == []
    assert summarise(trace).output_tokens == len(json.loads(out)["token_ids"]) == 16
    assert trace.metadata["requests"][0]["seed"] == json.loads(out)["seed"]


def test_the_names_of_all_causes_fit_eighty_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = simulate(even(12), "flowspec", language=LANGUAGE, tokens=20, trace=True)
    assert result.trace is not None
    result.trace.write(tmp_path / "trace.json")
    code, out, err = run_main(capsys, "trace", "summary", str(tmp_path / "trace.json"))
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert all(f" {cause}" in out for cause in CAUSES)
