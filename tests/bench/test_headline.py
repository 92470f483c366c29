"""The headline: which pipes are measured, and what the JSON object holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowspec.bench.comparison import compare
from flowspec.bench.efficiency import efficiency_of, fastest, prediction_of, software_of
from flowspec.bench.headline import FULL, QUICK, Extent, figures, lines_of, measure, sections_of
from flowspec.bench.matrix import Contender
from flowspec.bench.pipes import Pipe
from flowspec.bench.records import read_records
from flowspec.errors import ConfigurationError
from flowspec.schedule.options import read_options
from tests.bench.fake_runs import SPEEDS, FakeClient, FakeJudge, campaign, matrix, questions

TINY = Extent(questions=2, new_tokens=12, plain_tokens=4, finalists=0, everybody=False)


@pytest.mark.parametrize("extent", [FULL, QUICK])
def test_every_pipe_is_one_of_the_synthetic_model_and_has_all_opponents(extent: Extent) -> None:
    sections = {section.name: section for section in sections_of(extent)}
    assert {section.pipe.model for section in sections.values()} == {"synthetic"}
    assert sections["eight_stages"].pipe.stages == 8
    assert sections["uneven_stages"].pipe.slow_stage == 2
    for name in ("paper_7b", "eight_stages", "slow_link"):
        assert {"flowspec", "chunked", "pipedec", "autoregressive"} <= set(sections[name].policies)
    for section in sections.values():
        assert section.pipe.topology().model == "synthetic"


async def test_the_object_has_ratios_intervals_and_efficiencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPEEDS, "pipedec", 10.0)
    path = tmp_path / "headline.jsonl"
    values, records = await measure(TINY, path, FakeClient().open, FakeJudge(), lambda _: None)
    assert json.loads(json.dumps(values, allow_nan=False))
    for name in ("paper_7b", "eight_stages", "slow_link"):
        found = values[name]["temperature_0"]
        assert found["vs_chunked"] == values[name]["vs_chunked"] == pytest.approx(2)
        assert found["vs_pipedec"] == pytest.approx(1.6)
        assert found["vs_autoregressive"] == pytest.approx(4)
        assert list(found["vs_chunked_ci"]) == pytest.approx([2, 2])
    assert values["uneven_stages"]["vs_chunked"] == pytest.approx(2)
    assert set(values["runtime_efficiency"]) == {"2", "4", "8"}
    simulated = values["paper_7b"]["simulated_tokens_per_second"]["flowspec"]
    assert values["runtime_efficiency"]["4"] == pytest.approx(16 / simulated)
    assert read_records(path) == records
    for name in ("paper_7b", "two_stages", "uneven_stages"):
        assert {"flowspec", "chunked", "autoregressive"} <= set(values[name]["predicted_deviation"])
    lines = lines_of(values)
    assert sum("predicted" in line for line in lines) == sum(
        len(values[name]["predicted_deviation"]) for name in values if name.endswith(("7b", "stages", "link"))
    )
    assert max(map(len, lines)) <= 80
    assert "  vs chunked: 2.00x (2.00 to 2.00)" in lines


async def test_the_full_run_measures_the_finalists_of_the_sweeps_and_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for policy in ("pipedec", "pruned", "lockstep"):
        monkeypatch.setitem(SPEEDS, policy, 10.0)
    monkeypatch.setattr("flowspec.bench.headline.GRIDS", {"chunked": {"tree": (40, 80)}})
    extent = Extent(questions=1, new_tokens=12, plain_tokens=4, finalists=2, everybody=True)
    client = FakeClient()
    values, records = await measure(extent, tmp_path / "headline.jsonl", client.open, FakeJudge(), lambda _: None)
    assert {record.job.options for record in records if record.job.swept} == {(("tree", "40"),)}
    assert values["paper_7b"]["vs_chunked_best"] == pytest.approx(2)
    assert {"vs_pruned", "vs_lockstep"} <= set(values["paper_7b"])
    assert values["paper_7b"]["vs_chunked_ci"] is None


async def test_plain_pipelining_is_simulated_to_the_closed_form(tmp_path: Path) -> None:
    """A token is four stages of 60 ms, three links with one hidden state, and two with none."""
    pipe = Pipe("synthetic", 4, "paper-7b")
    asked = matrix(questions(), pipes=(pipe,), contenders=(Contender("autoregressive"),))
    records = await campaign(FakeClient(), tmp_path / "runs.jsonl", asked).run()
    hidden = 0.001 + (200 + 8192) * 8 / 150e6
    found = efficiency_of(pipe, records)
    assert found.simulated["autoregressive"].rate == pytest.approx(1 / (4 * 0.060 + 3 * hidden + 2 * 0.002))
    assert found.of("autoregressive") == pytest.approx(4 * (4 * 0.060 + 3 * hidden + 2 * 0.002))


async def test_software_is_what_a_pass_takes_beyond_the_simulated_time(tmp_path: Path) -> None:
    pipe = Pipe("synthetic", 2, "paper-7b")
    contenders = (Contender("autoregressive"), Contender("chunked"))
    asked = matrix(questions(), pipes=(pipe,), contenders=contenders)
    records = await campaign(FakeClient(), tmp_path / "runs.jsonl", asked).run()
    software = software_of(pipe, records)
    simulated = efficiency_of(pipe, records).simulated
    beyond = 1 / SPEEDS["autoregressive"] - 1 / simulated["autoregressive"].rate
    assert software.message == pytest.approx(beyond / 3)
    found = prediction_of(pipe, records, software)
    # What is fitted to it is met, but for the decisions' own time, which are no part of the fit.
    assert found.deviation("autoregressive") == pytest.approx(0, abs=0.02)
    assert found.predicted["chunked"].rate < simulated["chunked"].rate
    with pytest.raises(ConfigurationError, match="no run of autoregressive"):
        software_of(pipe, [record for record in records if record.job.policy == "chunked"])


async def test_the_best_of_a_sweep_stands_beside_the_papers_settings(tmp_path: Path) -> None:
    contenders = (Contender("flowspec"), Contender("chunked"), Contender("chunked", (("tree", "40"),), swept=True))
    records = await campaign(FakeClient(), tmp_path / "runs.jsonl", matrix(contenders=contenders)).run()
    (found,) = compare(records)
    values = figures(found)
    assert values["vs_chunked_best"] == pytest.approx(2)
    assert values["chunked_best"] in ({}, {"tree": "40"})


def test_the_simulators_finalists_are_its_fastest() -> None:
    pipe = Pipe("synthetic", 4, "paper-7b")
    candidates = [(("tree", "80"),), (("tree", "2"),), (("tree", "40"),)]
    found = fastest(pipe, "chunked", candidates, 2)
    assert set(found) == {(("tree", "80"),), (("tree", "40"),)}
    for options in found:
        read_options("chunked", options)
