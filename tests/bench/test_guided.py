"""Inputs found by coverage: how they are cut up and counted, and short runs where atheris is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

from flowspec.bench import guided
from flowspec.bench.fuzz import Campaign
from flowspec.bench.guided_inputs import TARGETS, Decisions, joined, parted

NEEDS_ATHERIS = "atheris is not installed (the extra fuzz)"


@pytest.mark.parametrize("of_client", [False, True])
def test_frames_come_out_of_an_input_as_they_went_in(of_client: bool) -> None:
    frames = [b"", b"a", bytes(300)]
    assert parted(joined(frames, of_client=of_client)) == (frames, of_client)


def test_every_input_is_some_frames() -> None:
    draw = Random(0)
    for size in range(60):
        frames, _ = parted(draw.randbytes(size))
        assert sum(map(len, frames)) <= size


def test_decisions_are_made_of_the_bytes_and_end_with_them() -> None:
    first, second = Decisions(bytes(range(40))), Decisions(bytes(range(40)))
    drawn = [first.randrange(7) for _ in range(20)]
    assert drawn == [second.randrange(7) for _ in range(20)]
    assert len(set(drawn)) > 3
    while not first.used_up:
        first.random()
    assert (first.choice("xyz"), first.random(), first.randrange(1000)) == ("x", 0.0, 0)


@pytest.mark.parametrize("name", ["frames", "topologies"])
def test_what_changes_an_input_gives_one_that_can_be_tried(name: str) -> None:
    target = TARGETS[name](Campaign(0), 0)
    for data in target.seeds():
        target.feed(target.vary(data))
    campaign = target.campaign
    assert (campaign.inputs, campaign.crashes) == (len(target.seeds()), 0)
    assert campaign.rejected


def test_without_atheris_it_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guided, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["guided"])
    with pytest.raises(SystemExit) as exit_with:
        guided.main()
    assert exit_with.value.code == 2
    assert "atheris is not installed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inputs"), [("frames", 1000), ("topologies", 60), ("clients", 90)])
def test_coverage_guides_each_target_and_every_input_is_counted(name: str, inputs: int) -> None:
    pytest.importorskip("atheris", reason=NEEDS_ATHERIS)
    found = guided.guided(inputs, targets=[name])
    result = found.targets[name]
    assert found.met
    assert result.executions == inputs
    assert result.counted["inputs"] >= inputs
    assert result.coverage > 300
    assert result.corpus > 10


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_not_met(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason=NEEDS_ATHERIS)
    told: list[str] = []
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "seed-0").mkdir()
    found = guided.guided(10, targets=["frames"], corpus=tmp_path, tell=told.append)
    assert found.targets["frames"].died
    assert not found.met
    assert any("IsADirectoryError" in line for line in told)
