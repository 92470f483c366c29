"""`flowspec simulate` and `flowspec plan`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowspec.planning.recording import Passage, Position, Recording
from flowspec.topology import Topology
from flowspec.tracing.trace import Trace
from tests.checkpoints import write_checkpoint
from tests.cli.running import run_main

QUICK = ("--runs", "1", "--tokens", "16")

FLEET = """\
model: synthetic
profile: paper-7b
nodes:
  - {name: draft, role: draft, host: 10.0.0.1, port: 7000}
  - {name: a, role: stage, host: 10.0.0.2, port: 7000, memory: 8GB}
  - {name: b, role: stage, host: 10.0.0.3, port: 7000, memory: 8GiB, speed: 2.0}
  - {name: snail, role: stage, host: 10.0.0.4, port: 7000, speed: 0.02}
"""


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run_main(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


# ---- simulate --------------------------------------------------------------------------------------------------------


def test_simulate_compares_three_policies_in_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run_main(capsys, "simulate", *QUICK)
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(policy in out for policy in ("autoregressive", "chunked", "flowspec"))
    assert "…" not in out


def test_a_sweep_tells_each_value_and_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = json_of(capsys, "simulate", *QUICK, "--sweep", "stages=1,2", "--policy", "autoregressive")
    assert [(each["stages"], len(each["occupancy"])) for each in found["results"]] == [(1, 1), (2, 2)]
    code, out, err = run_main(capsys, "simulate", *QUICK, "--sweep", "sessions=1,3")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out


def test_simulate_takes_a_topology_options_and_writes_a_trace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, trace = tmp_path / "fleet.yaml", tmp_path / "trace.json"
    file.write_text(FLEET)
    arguments = ("--policy", "flowspec", "--policy-option", "tree=8", "--trace", str(trace))
    found = json_of(capsys, "simulate", str(file), *QUICK, *arguments)
    assert len(found["results"][0]["occupancy"]) == 3
    assert Trace.read(trace).nodes == ("draft", "stage-1", "stage-2", "stage-3")


def test_a_simulated_trace_of_several_policies_can_be_looked_at_by_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "trace.json")
    json_of(capsys, "simulate", *QUICK, "--trace", file)
    for policy in ("autoregressive", "chunked", "flowspec"):
        found = json_of(capsys, "trace", "summary", file, "--policy", policy)
        assert found["requests"] == 1
        for node in found["nodes"][1:]:
            assert node["useful"] + node["wasted"] + node["idle"] == pytest.approx(1.0)


def test_simulate_replays_a_recording(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    positions = tuple(Position(token, {(): ((token, -0.01),)}) for token in range(5, 25))
    Recording((Passage((1, 2), positions),)).write(tmp_path / "run.jsonl")
    found = json_of(capsys, "simulate", "--recording", str(tmp_path / "run.jsonl"), "--policy", "flowspec")
    assert found["results"][0]["tokens_per_round"] == 20.0
    assert found["drafts"] == "recorded in run.jsonl"


def test_the_steps_of_a_deep_draft_take_longer_in_a_simulation_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, topology = tmp_path / "run.jsonl", tmp_path / "slow.yaml"
    positions = tuple(Position(token, {(): ((token, -0.01),)}) for token in range(5, 25))
    Recording((Passage((1, 2), positions),), draft_layers=3).write(file)
    topology.write_text(FLEET)
    for given in ((), (str(topology),)):
        replay = ("simulate", *given, "--recording", str(file), "--policy", "flowspec")
        deep = json_of(capsys, *replay)["results"][0]["tokens_per_second"]
        shallow = json_of(capsys, *replay, "--draft-layers", "1")["results"][0]["tokens_per_second"]
        assert deep < shallow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "nothing"), "paper-7b"),
        (("--policy", "nothing"), "policies: autoregressive"),
        (("--policy-option", "tree=8"), "options belong to one policy"),
        (("--sweep", "stages"), "KEY=VALUE"),
        (("--sweep", "colour=1"), "one of: stages"),
        (("--quality", "0.5", "--tokens-per-round", "5"), "give one of"),
        (("--quality", "1.5"), "between 0 and 1"),
        (("--tokens-per-round", "40"), "no quality"),
        (("--tokens-per-round", "0"), "no quality"),
        (("--tokens", "0"), "tokens is 0"),
        (("--stages", "0"), "stages is 0"),
        (("--recording", "nowhere.jsonl"), "cannot be read"),
        (("--draft-layers", "0"), "draft_layers is 0"),
        (("--trace", "/nowhere/trace.json"), "cannot be written"),
    ],
)
def test_simulate_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = run_main(capsys, "simulate", *QUICK, *arguments)
    assert code not in (0, 70)
    assert out == ""
    assert words in err


# ---- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_gives_layers_predicts_and_prints_a_fragment_that_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    found = json_of(capsys, "plan", str(file), "--tokens", "24", "--keep-drafter")
    chosen = found["chosen"]
    assert chosen["draft"] == "draft"
    assert [stage["node"] for stage in chosen["stages"]] == ["a", "b"]
    assert chosen["stages"][-1]["layers"][1] == 31
    assert all(stage["bytes"] <= stage["memory"] for stage in chosen["stages"])
    planned = Topology.load(file).replace(**yaml.safe_load(found["fragment"]))
    assert [planned.layer_range(stage.name) for stage in planned.stages] == [
        (stage["layers"][0], stage["layers"][1] + 1) for stage in chosen["stages"]
    ]


def test_a_plan_on_a_terminal_says_who_is_in_the_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    code, out, err = run_main(capsys, "plan", str(file), "--tokens", "24", "--keep-drafter")
    assert code == 0, err
    assert "faster without snail" in out
    assert "tokens/s predicted; bottleneck: " in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_plan_of_a_real_model_measures_a_layer_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "llama", layers=4)
    file = tmp_path / "two.yaml"
    file.write_text(
        f"model: {model}\ndrafter: ngram\nnodes:\n"
        "  - {name: draft, role: draft, host: 127.0.0.1, port: 7000}\n"
        "  - {name: one, role: stage, host: 127.0.0.1, port: 7010}\n"
        "  - {name: two, role: stage, host: 127.0.0.1, port: 7020}\n"
    )
    code, _, err = run_main(capsys, "plan", str(file), "--tokens", "8")
    assert code not in (0, 70)
    assert "nothing says how fast draft is" in err
    assert "--measure" in err
    found = json_of(capsys, "plan", str(file), "--tokens", "8", "--measure", "--keep-drafter")
    layers = [stage["layers"] for stage in found["chosen"]["stages"]]
    assert layers[0][0] == 0
    assert layers[-1][1] == 3
    assert found["assumed"]


def test_a_plan_for_devices_that_are_too_small_says_how_much_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(FLEET.replace("8GiB", "1GB").replace("8GB", "1GB").replace("speed: 0.02", "memory: 1GB"))
    code, _, err = run_main(capsys, "plan", str(file), "--tokens", "8", "--keep-drafter")
    assert code not in (0, 70)
    assert "the model needs 15.11 GB" in err
