"""Recorded runs as tables and as plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flowspec.bench.comparison import compare
from flowspec.bench.matrix import Contender
from flowspec.bench.pipes import Pipe
from flowspec.bench.records import Record
from flowspec.bench.report import show_report
from flowspec.bench.series import Bars, Curves, plots_of
from tests.bench.fake_runs import FakeClient, campaign, matrix, questions

SWEPT = Contender("chunked", (("tree", "40"),), swept=True)
PLAIN = Contender("flowspec", (("prune", "false"),))


async def records_of(path: Path, **changes: object) -> list[Record]:
    contenders = (*map(Contender, ("autoregressive", "chunked", "flowspec")), SWEPT, PLAIN)
    asked = matrix(questions("code"), questions("chat", 2), **{"contenders": contenders, **changes})
    return await campaign(FakeClient(), path / "runs.jsonl", asked).run()


def faster(records: list[Record], who: Contender, factor: float) -> list[Record]:
    return [
        replace(record, stats=record.stats | {"seconds": record.stats["seconds"] / factor})
        if record.job.contender == who
        else record
        for record in records
    ]


def printed(records: list[Record]) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        show_report(records, console)
    return console.export_text()


async def test_ratios_are_to_chunked_and_means_over_the_sets(tmp_path: Path) -> None:
    (found,) = compare(await records_of(tmp_path))
    assert found.baseline == Contender("chunked")
    fast, plain = Contender("flowspec"), Contender("autoregressive")
    assert found.rate(fast) == pytest.approx(16)
    assert found.ratio(fast, found.baseline).value == pytest.approx(2)
    assert found.ratio(plain, found.baseline, "chat").value == pytest.approx(0.5)
    assert found.acceptance(fast) == (0.25, 2.0)


async def test_a_question_that_was_asked_more_often_counts_no_more(tmp_path: Path) -> None:
    records = await records_of(tmp_path, repeats=2)
    easy = [
        replace(record, stats=record.stats | {"seconds": record.stats["seconds"] / 3})
        if (record.job.set, record.job.question) == ("code", "0")
        else record
        for record in records
    ]
    # The second repeat was interrupted after one policy's first answer.
    whole = [record for record in easy if record.job.repeat == 0]
    broken_off = [record for record in easy if record.job.repeat and record.job.contender == Contender("flowspec")][:1]
    (found,), (expected,) = compare([*whole, *broken_off]), compare(whole)
    fast, slow = Contender("flowspec"), Contender("chunked")
    assert found.ratio(fast, slow, "code") == expected.ratio(fast, slow, "code")
    assert found.ratio(fast, slow).value == pytest.approx(2)


async def test_what_not_all_have_answered_does_not_count_and_is_told(tmp_path: Path) -> None:
    records = await records_of(tmp_path)
    for record in records:
        record.stats["seconds"] *= 1 + 9 * (record.job.question == "2")
    missed = [
        record
        for record in records
        if (record.job.set, record.job.question, record.job.policy) != ("code", "2", "flowspec")
    ]
    (found,) = compare(missed)
    assert found.left_out == 1
    assert [found.rate(Contender(policy), "code") for policy in ("chunked", "flowspec")] == pytest.approx([8, 16])
    assert "1 questions that not all have answered do not count" in printed(missed)
    assert "not all have answered" not in printed(records)


async def test_who_answered_other_questions_than_all_others_is_left_out(tmp_path: Path) -> None:
    records = [
        record
        for record in await records_of(tmp_path)
        if (record.job.question == "0") == (record.job.policy == "autoregressive")
    ]
    (found,) = compare(records)
    assert [who.policy for who in found.contenders] == ["chunked", "chunked", "flowspec", "flowspec"]
    assert found.left_out == 2
    assert printed(records)


async def test_lengths_are_kept_apart_but_plain_decoding_stands_beside_all(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    contenders = tuple(map(Contender, ("chunked", "flowspec")))
    short = await records_of(tmp_path, contenders=(*contenders, Contender("autoregressive", new_tokens=4)))
    long = await records_of(tmp_path / "long", contenders=contenders, new_tokens=29)
    for record in long:
        record.stats["seconds"] /= 1 + (record.job.question == "0")
    found = compare([*short, *long[1:]])
    assert [each.condition.new_tokens for each in found] == [9, 29]
    assert [len(each.contenders) for each in found] == [3, 3]
    fast, slow = Contender("flowspec"), Contender("chunked")
    assert [each.ratio(fast, slow).value for each in found] == pytest.approx([2, 2])


async def test_the_policy_as_set_is_the_one_with_all_its_mechanisms(tmp_path: Path) -> None:
    records = await records_of(tmp_path)
    (found,) = compare(sorted(records, key=lambda record: record.job.contender != PLAIN))
    assert found.standard("flowspec") == Contender("flowspec")


async def test_the_best_of_a_sweep_may_be_the_setting_itself(tmp_path: Path) -> None:
    records = await records_of(tmp_path)
    (worse,), (better,) = compare(faster(records, SWEPT, 0.5)), compare(faster(records, SWEPT, 1.5))
    assert worse.best("chunked") == Contender("chunked")
    assert better.best("chunked") == SWEPT
    assert better.best("flowspec") is None


async def test_the_report_fits_eighty_columns_and_names_everybody(tmp_path: Path) -> None:
    text = printed(faster(await records_of(tmp_path), SWEPT, 1.5))
    assert max(map(len, text.splitlines())) <= 80
    for wanted in (
        "demo, 4 stages, this machine, temperature 0",
        "best of sweep",
        "prune=false",
        "2.00x",
        "12.00",
        "25%",
    ):
        assert wanted in text
    assert "flowspec 0.0 at abc, on a machine" in " ".join(text.split())


async def test_conditions_are_kept_apart_and_other_machines_are_told(tmp_path: Path) -> None:
    records = await records_of(tmp_path, temperatures=(0.0, 1.0), pipes=(Pipe(stages=2), Pipe(stages=4)))
    assert len(compare(records)) == 4
    other = replace(records[0], place=replace(records[0].place, machine="another"))
    assert "another (2 cores)" in " ".join(printed([*records, other]).split())


async def test_runs_that_differ_by_ties_are_counted(tmp_path: Path) -> None:
    records = await records_of(tmp_path)
    assert "ties" not in printed(records)
    assert "1 runs differ" in printed([replace(records[0], agrees=False), *records[1:]])


async def test_a_contender_that_missed_a_set_is_left_out(tmp_path: Path) -> None:
    records = [
        record
        for record in await records_of(tmp_path)
        if (record.job.policy, record.job.set) != ("autoregressive", "chat")
    ]
    (found,) = compare(records)
    assert Contender("autoregressive") not in found.contenders


async def test_plots_show_sets_stages_and_what_stages_did(tmp_path: Path) -> None:
    records = await records_of(tmp_path, pipes=(Pipe(stages=2), Pipe(stages=4)), traced=True)
    did = {"useful": 0.5, "wasted": 0.3, "idle": 0.2}
    watched = [replace(record, stages_did=did) if record.job.traced else record for record in records]
    plots = {plot.name: plot for plot in plots_of(compare(watched), lambda _: None)}
    assert set(plots) == {
        *(f"{name}-{number}" for name in ("speed-up", "acceptance", "occupancy") for number in (1, 2)),
        "stages-1",
    }
    speeds, busy, stages = plots["speed-up-1"], plots["occupancy-1"], plots["stages-1"]
    assert isinstance(speeds, Bars)
    assert speeds.groups == ("code", "chat")
    assert speeds.heights[speeds.bars.index("flowspec")] == pytest.approx((2, 2))
    assert isinstance(busy, Bars)
    assert busy.heights == tuple((share,) * len(busy.groups) for share in did.values())
    assert isinstance(stages, Curves)
    assert stages.title == "demo, this machine, temperature 0, 9 tokens"
    assert {line.name: line.points for line in stages.lines}["flowspec"] == ((2.0, 16.0), (4.0, 16.0))
    assert not any("best of sweep" in line.name for line in stages.lines)


async def test_link_rates_make_a_curve_with_the_profiles_own_rate_on_it(tmp_path: Path) -> None:
    pipes = (Pipe(profile="p"), Pipe(profile="p", rate_mbit=50))
    records = await records_of(tmp_path, pipes=pipes)
    curves = [plot for plot in plots_of(compare(records), {"p": 150.0}.get) if isinstance(plot, Curves)]
    assert [plot.name for plot in curves] == ["link-rate-1"]
    assert curves[0].title == "demo, 4 stages, p, temperature 0, 9 tokens"
    assert [place for place, _ in curves[0].lines[0].points] == [50, 150]
