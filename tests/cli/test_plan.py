"""`flowspec plan`: options of the topology, what it refuses, and what it measures while the machine is busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowspec.model import curve
from flowspec.model.block import LayerBlock
from flowspec.model.hub import resolve_model
from flowspec.topology import Topology
from tests.cli.running import run_main

FLEET = """\
model: synthetic
profile: paper-7b
nodes:
  - {name: draft, role: draft, host: 10.0.0.1, port: 7000}
  - {name: a, role: stage, host: 10.0.0.2, port: 7000}
  - {name: b, role: stage, host: 10.0.0.3, port: 7000}
"""

DEMO = """\
model: demo
nodes:
  - {name: draft, role: draft, host: 10.0.0.1, port: 7000}
  - {name: a, role: stage, host: 10.0.0.2, port: 7000, threads: 2}
  - {name: b, role: stage, host: 10.0.0.3, port: 7000}
"""

QUICK = ("--tokens", "24", "--keep-drafter")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def plan_of(capsys: pytest.CaptureFixture[str], file: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = run_main(capsys, "plan", str(file), *QUICK, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf"])
def test_a_latency_is_finite_and_not_negative(capsys: pytest.CaptureFixture[str], fleet: Path, value: str) -> None:
    code, out, err = run_main(capsys, "plan", str(fleet), "--latency", value)
    assert (code, out) == (2, "")
    assert f"latency is {value} ms; it must be finite, and 0 or more" in err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf"])
def test_a_rate_is_finite_and_positive(capsys: pytest.CaptureFixture[str], fleet: Path, value: str) -> None:
    code, out, err = run_main(capsys, "plan", str(fleet), "--rate", value)
    assert (code, out) == (2, "")
    assert f"rate is {value} Mbit/s; it must be finite, and more than 0" in err


def test_a_latency_of_zero_is_a_latency(capsys: pytest.CaptureFixture[str], fleet: Path) -> None:
    assert plan_of(capsys, fleet, "--latency", "0", "--rate", "0.5")["chosen"]["stages"]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("draft, role: draft, memory: 1000", "the drafter needs "),
        ("draft, role: draft, memory: 900GB", "the model needs 15.11 GB, 0.47 GB for a single layer; beside draft"),
    ],
)
def test_what_does_not_fit_is_named(capsys: pytest.CaptureFixture[str], fleet: Path, nodes: str, words: str) -> None:
    fleet.write_text(FLEET.replace("draft, role: draft", nodes).replace("role: stage", "role: stage, memory: 1GB"))
    code, _, err = run_main(capsys, "plan", str(fleet), *QUICK)
    assert code == 2
    assert words in err


# ---- options of the topology -----------------------------------------------------------------------------------------


def speeds(found: dict[str, Any]) -> dict[str, float]:
    """By policy, for two stages."""
    both = next(each for each in (found["chosen"], *found["alternatives"]) if len(each["stages"]) == 2)
    return {each["policy"]: each["tokens_per_second"] for each in both["estimates"]}


def test_options_of_the_topologys_policy_count(capsys: pytest.CaptureFixture[str], fleet: Path) -> None:
    usual = speeds(plan_of(capsys, fleet))
    fleet.write_text("policy_options: {tree: 2, prune: false}\n" + FLEET)
    small = speeds(plan_of(capsys, fleet))
    assert small["flowspec"] < usual["flowspec"]
    assert small["autoregressive"] == usual["autoregressive"]


def test_options_of_a_policy_that_is_not_planned_for_are_said_not_to_count(
    capsys: pytest.CaptureFixture[str], fleet: Path
) -> None:
    usual = speeds(plan_of(capsys, fleet))
    fleet.write_text("policy: chunked\npolicy_options: {tree: 2}\n" + FLEET)
    found = plan_of(capsys, fleet)
    assert speeds(found) == usual
    assert "the usual options of flowspec and autoregressive: policy_options are for chunked" in found["assumed"]


@pytest.mark.parametrize("options", ["{trees: 2}", "{tree: 1}", "{prune: 3}"])
def test_options_that_the_policy_does_not_have_are_refused(
    capsys: pytest.CaptureFixture[str], fleet: Path, options: str
) -> None:
    fleet.write_text(f"policy_options: {options}\n" + FLEET)
    code, out, err = run_main(capsys, "plan", str(fleet), *QUICK)
    assert (code, out) == (2, "")
    assert f"{fleet}:1: `policy_options." in err
    assert "options of flowspec: tree (2 to 256; 256)" in err


def test_a_fragment_leaves_no_options_to_a_policy_that_has_none(
    capsys: pytest.CaptureFixture[str], fleet: Path
) -> None:
    kept = "policy_options: {tree: 64}\n" + FLEET
    fleet.write_text(kept)
    assert "policy_options" not in yaml.safe_load(plan_of(capsys, fleet)["fragment"])
    fleet.write_text("policy: chunked\n" + kept)
    planned = Topology.load(fleet).replace(**yaml.safe_load(plan_of(capsys, fleet)["fragment"]))
    assert (planned.policy, planned.policy_options) == ("flowspec", {})


# ---- what it answers -------------------------------------------------------------------------------------------------


def test_equal_devices_keep_names_and_roles_and_every_number_of_stages_has_its_answer(
    capsys: pytest.CaptureFixture[str], fleet: Path
) -> None:
    more = "".join(f"  - {{name: {name}, role: stage, host: {name}, port: 7000}}\n" for name in "cd")
    fleet.write_text(FLEET + more)
    code, out, err = run_main(capsys, "plan", str(fleet), "--tokens", "24", "--json")
    assert code == 0, err
    found = json.loads(out)
    every = [found["chosen"], *found["alternatives"]]
    layouts = [[each["draft"], *(stage["node"] for stage in each["stages"])] for each in every]
    assert sorted(layouts) == [["draft", *"abcd"[:count]] for count in (1, 2, 3, 4)]
    roles = {node["name"]: node["role"] for node in yaml.safe_load(found["fragment"])["nodes"]}
    assert roles == {name: "draft" if name == "draft" else "stage" for name in roles}


def test_a_plan_says_where_a_simulation_takes_another_time(capsys: pytest.CaptureFixture[str], fleet: Path) -> None:
    narrow = FLEET.replace("role: stage", "role: stage, memory: 10GB")
    fleet.write_text(narrow)
    words = "a stage takes the time of its layers: a with 16 takes 128.4 ms for 8 tokens. flowspec simulate, and a "
    words += "node that emulates, take 64.2 ms, as profile paper-7b says, whatever it holds"
    assert plan_of(capsys, fleet)["assumed"] == [words]
    own = narrow.replace("10.0.0.3, port: 7000", "10.0.0.3, port: 7000, emulate: {base_ms: 400}")
    fleet.write_text(own.replace("10.0.0.2, port: 7000", "10.0.0.2, port: 7000, emulate: {base_ms: 500}"))
    (found,) = plan_of(capsys, fleet)["assumed"]
    assert "as its `emulate` says" in found
    four = "".join(f"  - {{name: {name}, role: stage, host: {name}, port: 7000, memory: 4GB}}\n" for name in "abcd")
    fleet.write_text(FLEET[: FLEET.index("  - {name: a")] + four)
    assert plan_of(capsys, fleet)["assumed"] == []


# ---- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block() -> LayerBlock:
    return LayerBlock.load(resolve_model("demo"), 4, 5)


class Clock:
    """Stands in for the timing of one forward: a microsecond per token and, with several threads, `several` of them
    in turn."""

    def __init__(self, *several: float) -> None:
        self.several = several
        self.threads: list[int] = []

    def __call__(self, block: LayerBlock, cache: object, count: int) -> float:
        threads = torch.get_num_threads()
        self.threads.append(threads)
        factor = 1.0 if threads == 1 else self.several[len(self.threads) // len(curve.TOKENS) % len(self.several)]
        return factor * count * 1e-6


def at_speed(monkeypatch: pytest.MonkeyPatch, *several: float) -> Clock:
    clock = Clock(*several)
    monkeypatch.setattr(curve, "_time", clock)
    return clock


def test_a_layer_is_timed_with_the_threads_that_a_node_has(monkeypatch: pytest.MonkeyPatch, block: LayerBlock) -> None:
    clock = at_speed(monkeypatch, 0.5)
    before = torch.get_num_threads()
    found = curve.measure_apart(block, 2, budget=0.0)
    assert found.seconds == tuple(0.5e-6 * count for count in curve.TOKENS)
    assert found.certain
    assert torch.get_num_threads() == before
    assert clock.threads.count(2) == curve.ROUNDS * len(curve.TOKENS)


def test_threads_that_wait_for_a_core_are_not_what_a_node_takes(
    monkeypatch: pytest.MonkeyPatch, block: LayerBlock
) -> None:
    at_speed(monkeypatch, 300.0)
    found = curve.measure_apart(block, 2, budget=0.0)
    assert found.seconds == tuple(1e-6 * count for count in curve.TOKENS)
    assert found.spread == pytest.approx(300.0)
    assert not found.certain


def test_repetitions_that_disagree_are_not_certain(monkeypatch: pytest.MonkeyPatch, block: LayerBlock) -> None:
    at_speed(monkeypatch, 0.5, 3.0, 3.0)
    found = curve.measure_apart(block, 2, budget=0.0)
    assert found.seconds == tuple(0.5e-6 * count for count in curve.TOKENS)
    assert found.spread == pytest.approx(6.0)
    assert not found.certain


def test_a_plan_made_on_a_busy_machine_says_so_and_is_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "demo.yaml"
    file.write_text(DEMO)
    monkeypatch.setattr(curve, "measure_apart", partial(curve.measure_apart, budget=0.0))
    at_speed(monkeypatch, 1.0)
    quiet = plan_of(capsys, file, "--measure")
    assert quiet["uncertain"] == []
    at_speed(monkeypatch, 300.0)
    busy = plan_of(capsys, file, "--measure")
    assert busy["chosen"] == quiet["chosen"]
    assert len(busy["uncertain"]) == 1
    code, out, err = run_main(capsys, "plan", str(file), *QUICK, "--measure")
    assert code == 0, err
    words = "uncertain: this machine was busy while a layer was measured: it took up to 300 times as long as it needs"
    assert words in " ".join(out.split())


@contextmanager
def every_core_busy() -> Iterator[None]:
    """Two processes for each core that do nothing but compute."""
    cores = os.cpu_count() or 1
    loops = [
        subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        for _ in range(2 * cores)
    ]
    try:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def test_two_threads_beside_busy_cores_seem_hardly_slower(block: LayerBlock) -> None:
    quiet = curve.measure_apart(block, 2, budget=0.3)
    with every_core_busy():
        busy = curve.measure_apart(block, 2, budget=0.3)
    assert max(busy.seconds[at] / quiet.seconds[at] for at in range(len(curve.TOKENS))) < 5.0
