"""`flowspec simulate` and `flowspec plan`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowspec.model.hub import resolve_model
from flowspec.model.weights import Checkpoint
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

PAIR = """\
model: demo
link: {rate_mbit: 1}
nodes:
  - {name: draft, role: draft, host: 10.0.0.1, port: 7000}
  - {name: a, role: stage, host: 10.0.0.2, port: 7000, emulate: {base_ms: 5}}
  - {name: b, role: stage, host: 10.0.0.3, port: 7000, emulate: {base_ms: 20}}
"""
"""Two stages of different times on a link that does not say what a hidden state weighs."""


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sweep", "sessions=1,64", "--profile", "two-gpus-1gbit", "--policy", "autoregressive"),
        ("--sweep", "rate=0.00123457", "--policy", "autoregressive"),
    ],
)
def test_large_figures_fit_eighty_columns_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run_main(capsys, "simulate", "--runs", "2", "--tokens", "16", *arguments)
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "…" not in out


def test_sessions_are_compared_by_what_all_of_them_get_and_their_waits_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("simulate", *QUICK, "--sessions", "12", "--policy", "autoregressive", "--policy", "chunked")
    plain, chunked = json_of(capsys, *arguments)["results"]
    whole, own = (chunked[key] / plain[key] for key in ("throughput", "tokens_per_second"))
    assert f"{whole:.2f}" != f"{own:.2f}"
    code, out, err = run_main(capsys, *arguments)
    assert code == 0, err
    heads, row = (next(line.split() for line in out.splitlines() if word in line) for word in ("policy", "chunked"))
    assert heads == ["policy", "tokens/s", "all/s", "x", "plain", "first", "round", "cost", "busy"]
    assert row[2:5] == [f"{each:.2f}" for each in (chunked["throughput"], whole, chunked["time_to_first_token"])]


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
    assert found["tokens"] == 20


def test_the_tokens_of_recorded_texts_are_those_that_were_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    passages = [Passage((1, 2), tuple(Position(token, {}) for token in range(5, 5 + count))) for count in (8, 12)]
    Recording(tuple(passages)).write(file)
    replay = ("simulate", "--recording", str(file), "--policy", "autoregressive")
    assert json_of(capsys, *replay)["tokens"] == 10
    assert "; 8 to 12 tokens" in run_main(capsys, *replay)[1]
    assert "; 6 tokens" in run_main(capsys, *replay, "--tokens", "6")[1]
    Recording((Passage((1, 2), (Position(5, {}),)),)).write(file)
    code, _, err = run_main(capsys, *replay)
    assert code == 2
    assert "run.jsonl holds a text of one token" in err


@pytest.mark.parametrize("option", ["--runs", "--seed", "--prompt"])
def test_a_recording_leaves_nothing_to_options_of_synthetic_texts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    file = tmp_path / "run.jsonl"
    Recording((Passage((1, 2), tuple(Position(token, {}) for token in range(5, 25))),)).write(file)
    code, out, err = run_main(capsys, "simulate", "--recording", str(file), option, "1")
    assert (code, out) == (2, "")
    assert f"{option} has no effect" in err


# ---- simulate a topology ---------------------------------------------------------------------------------------------


def speed_on(capsys: pytest.CaptureFixture[str], file: Path, text: str, *arguments: str) -> float:
    """Tokens per second of one policy on the topology `text`."""
    file.write_text(text)
    speed: float = json_of(capsys, "simulate", str(file), *QUICK, *arguments)["results"][0]["tokens_per_second"]
    return speed


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_hidden_states_weigh_what_the_model_says_where_the_link_does_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str, size: int
) -> None:
    file, policy = tmp_path / "pair.yaml", ("--policy", "autoregressive")
    weight = Checkpoint(resolve_model("demo")).hidden_size * size
    written = PAIR.replace("rate_mbit: 1", f"rate_mbit: 1, bytes_per_token: {weight}")
    found = speed_on(capsys, file, f"dtype: {dtype}\n{PAIR}", *policy)
    assert found == pytest.approx(speed_on(capsys, file, written, *policy))
    assert found < 0.95 * speed_on(capsys, file, written.replace(str(weight), "1"), *policy)


def test_a_rate_without_bytes_of_hidden_states_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, missing = tmp_path / "pair.yaml", str(tmp_path / "gone")
    free = PAIR.replace("rate_mbit: 1", "latency_ms: 1")
    for text, arguments, words in (
        (PAIR.replace("demo", "synthetic"), (), "synthetic has none of its own"),
        (free.replace("demo", "synthetic"), ("--sweep", "rate=1,10"), "synthetic has none of its own"),
        (PAIR.replace("demo", missing), (), f"there is no directory {missing}"),
    ):
        file.write_text(text)
        code, _, err = run_main(capsys, "simulate", str(file), *QUICK, *arguments)
        assert code in (2, 3)
        assert "nothing says how many bytes a hidden state has" in err
        assert words in err
        assert "bytes_per_token" in err
    code, _, err = run_main(capsys, "simulate", "--profile", "slow-link", *QUICK, "--sweep", "rate=10")
    assert code == 2
    assert "the profile does not" in err
    # Without a rate, bytes take no time, and no model is opened.
    assert speed_on(capsys, file, free.replace("demo", missing), "--policy", "autoregressive") > 0.0


def test_a_topology_says_how_wide_its_drafter_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, policy = tmp_path / "fleet.yaml", ("--policy", "flowspec")
    narrow = speed_on(capsys, file, FLEET + "drafter: {width: 1}\n", *policy)
    assert narrow != speed_on(capsys, file, FLEET, *policy)
    assert narrow == speed_on(capsys, file, FLEET, *policy, "--policy-option", "width=1")


def test_a_topologys_policy_options_hold_for_its_policy_and_give_way_to_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, policy = tmp_path / "fleet.yaml", ("--policy", "flowspec")
    small = FLEET + "policy_options: {tree: 4, score_order: false}\n"
    option = ("--policy-option", "score_order=false", "--policy-option")
    found = speed_on(capsys, file, small, *policy)
    assert found == speed_on(capsys, file, FLEET, *policy, *option, "tree=4")
    assert found != speed_on(capsys, file, FLEET, *policy)
    wide = speed_on(capsys, file, small, *policy, "--policy-option", "tree=64")
    assert wide == speed_on(capsys, file, FLEET, *policy, *option, "tree=64")
    assert wide != found
    other = ("--policy", "chunked")
    assert speed_on(capsys, file, small, *other) == speed_on(capsys, file, FLEET, *other)
    file.write_text(FLEET + "policy_options: {tree: 100000}\n")
    code, _, err = run_main(capsys, "simulate", str(file), *QUICK)
    assert code == 2
    assert "`policy_options.tree`: the option tree" in err


def test_a_topology_says_how_good_its_synthetic_drafts_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"

    def drafts(section: str, *arguments: str) -> str:
        file.write_text(f"{FLEET}synthetic: {section}\n")
        found: str = json_of(capsys, "simulate", str(file), *QUICK, "--policy", "chunked", *arguments)["drafts"]
        return found

    assert drafts("{tokens_per_round: 4}") == "4 tokens a round"
    assert drafts("{quality: 0.7}") == "quality 0.7"
    assert drafts("{seed: 3}") == "5.4 tokens a round"
    assert drafts("{tokens_per_round: 4}", "--tokens-per-round", "6") == "6 tokens a round"
    assert drafts("{tokens_per_round: 40}", "--quality", "0.5") == "quality 0.5"
    code, _, err = run_main(capsys, "simulate", str(file), *QUICK)
    assert code == 2
    assert "synthetic in the topology: no quality of guesses writes 40 tokens a round" in err


def test_a_profile_in_place_of_the_topologys_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    plain = ("simulate", str(file), *QUICK, "--policy", "autoregressive")
    own, other = (json_of(capsys, *plain, *arguments) for arguments in ((), ("--profile", "slow-link")))
    assert own["pipe"] == f"{file}, 3 stages"
    assert other["pipe"] == f"{file} with slow-link, 3 stages"
    assert own["results"] != other["results"]


def test_a_title_tells_no_number_of_stages_that_is_swept(capsys: pytest.CaptureFixture[str]) -> None:
    one = ("simulate", *QUICK, "--policy", "autoregressive")
    assert json_of(capsys, *one, "--sweep", "stages=2")["pipe"] == "paper-7b"
    assert json_of(capsys, *one, "--sweep", "split=2", "--stages", "8")["pipe"] == "paper-7b, the model of 8 stages"
    assert json_of(capsys, *one, "--sweep", "latency=2")["pipe"] == "paper-7b, 4 stages"


def test_stages_of_different_times_can_be_split_and_not_be_repeated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, plain = tmp_path / "pair.yaml", ("--policy", "autoregressive")
    free = PAIR.replace("rate_mbit: 1", "latency_ms: 0")
    for value in (1, 2, 5):
        # 25 ms a token, however they are divided.
        assert speed_on(capsys, file, free, *plain, "--sweep", f"split={value}") == pytest.approx(40.0)
    code, out, err = run_main(capsys, "simulate", str(file), *QUICK, "--sweep", "stages=2,4")
    assert (code, out) == (2, "")
    assert "stages of different times cannot be swept" in err
    assert "split" in err


@pytest.mark.parametrize("quality", ["0.01", "0.001", "1e-300", "0.9999999"])
def test_every_quality_between_nothing_and_certainty_works(capsys: pytest.CaptureFixture[str], quality: str) -> None:
    found = json_of(capsys, "simulate", *QUICK, "--quality", quality)
    assert all(each["tokens_per_second"] > 0.0 for each in found["results"])


def test_a_recordings_drafter_is_no_deeper_than_any_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    passage = Passage((1, 2), tuple(Position(token, {}) for token in range(5, 25)))
    Recording((passage,), draft_layers=1_000_000).write(file)
    code, _, err = run_main(capsys, "simulate", "--recording", str(file))
    assert code == 2
    assert "draft_layers is 1000000" in err


@pytest.mark.parametrize("arguments", [("--stages", "2"), ("--runs", "1"), ("--prompt", "64"), ("--seed", "0")])
def test_options_that_have_their_defaults_may_be_written(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert json_of(capsys, "simulate", "--tokens", "8", "--policy", "autoregressive", *arguments)["results"]


# ---- what simulate refuses -------------------------------------------------------------------------------------------


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
        (("--tokens-per-round", "3.23"), "writes 3.24 to 6.99"),
        (("--tokens", "0"), "tokens is 0"),
        (("--tokens", "1"), "tokens is 1; it must be 2 or more"),
        (("--stages", "0"), "stages is 0"),
        (("--stages", "257"), "stages is 257; it must be from 1 to 256"),
        (("--message-overhead", "-1"), "message_overhead is -1 ms"),
        (("--message-overhead", "nan"), "message_overhead is nan ms"),
        (("--segment-overhead", "inf"), "segment_overhead is inf ms"),
        (("--segment-overhead", "-0.5"), "segment_overhead is -0.5 ms"),
        (("--sweep", "latency=1", "--sweep", "rate=10"), "one thing can be swept at a time"),
        (("--sweep", "sessions=1,2", "--sessions", "4"), "leave out --sessions"),
        (("--sweep", "stages=1,2", "--stages", "4"), "leave out --stages"),
        (("--sweep", "stages=2,1000"), "stages cannot be 1000"),
        (("--quality", "0"), "between 0 and 1"),
        (("--recording", "nowhere.jsonl"), "cannot be read"),
        (("--draft-layers", "0"), "draft_layers is 0"),
        (("--draft-layers", "1000000"), "draft_layers is 1000000; it must be from 1 to 4096"),
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
