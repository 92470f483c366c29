"""The planner against every division there is, and against what a small fleet plainly wants."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import ConfigurationError
from flowspec.planning import planner
from flowspec.planning.division import Device, ModelSizes, Ranges, divide
from flowspec.planning.estimate import Workload
from flowspec.planning.pipe import DraftTime, LinkTime
from flowspec.planning.planner import plan
from flowspec.schedule.events import interpolate
from flowspec.schedule.options import FlowspecOptions
from flowspec.schedule.window import TYPICAL_TOKENS
from tests.planning.pipes import LANGUAGE, LINK

GB = 10**9
WORKLOAD = Workload.synthetic(LANGUAGE, 1, tokens=24)


def device(name: str, speed: float = 1.0, memory: int | None = None, *, drafts: bool = True) -> Device:
    """7.5 ms a layer at speed 1."""
    layer = 0.0075 / speed
    return Device(name, ((1, layer), (64, 1.6 * layer)), memory, DraftTime(0.01 / speed) if drafts else None)


def near(origin: str, target: str) -> LinkTime:
    return LINK


# ---- divisions -------------------------------------------------------------------------------------------------------


def every_division(layers: int, parts: int) -> list[Ranges]:
    return [tuple(zip((0, *cuts), (*cuts, layers), strict=True)) for cuts in combinations(range(1, layers), parts - 1)]


def cost(devices: list[Device], model: ModelSizes, ranges: Ranges) -> tuple[float, float]:
    """The slowest stage and the sum; infinite where something does not fit."""
    times = []
    for each, span in zip(devices, ranges, strict=True):
        fits = each.memory is None or model.bytes_of(*span) <= each.memory
        times.append(model.work_of(*span) * each.seconds if fits else inf)
    return max(times), sum(times)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_division_is_better_than_the_one_that_is_found(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 9))
    model = ModelSizes(
        work=tuple(data.draw(st.lists(st.floats(0.5, 2.0), min_size=layers, max_size=layers))),
        bytes=tuple(data.draw(st.lists(st.integers(1, 5), min_size=layers, max_size=layers))),
        embedding_bytes=data.draw(st.integers(0, 5)),
        head_work=data.draw(st.floats(0.0, 2.0)),
        head_bytes=data.draw(st.integers(0, 5)),
    )
    devices = [
        device(str(index), data.draw(st.floats(0.25, 4.0)), data.draw(st.none() | st.integers(1, 20)))
        for index in range(data.draw(st.integers(1, min(4, layers))))
    ]
    best = min(cost(devices, model, ranges) for ranges in every_division(layers, len(devices)))
    found = divide(devices, model)
    if best[0] == inf:
        assert found is None
        return
    assert found is not None
    assert cost(devices, model, found) == pytest.approx(best)


def test_even_devices_share_evenly_and_a_fast_one_takes_more() -> None:
    model = ModelSizes.even(12)
    assert divide([device("a"), device("b"), device("c")], model) == ((0, 4), (4, 8), (8, 12))
    assert divide([device("a"), device("b", 2.0)], model) == ((0, 4), (4, 12))


def test_memory_comes_before_speed() -> None:
    model = ModelSizes.even(12, layer_bytes=10)
    assert divide([device("a"), device("b", 4.0, memory=60)], model) == ((0, 6), (6, 12))


def test_more_devices_than_layers_share_nothing() -> None:
    assert divide([device("a"), device("b")], ModelSizes.even(1)) is None


def test_stages_are_balanced_for_the_segments_for_which_windows_are_computed() -> None:
    bent = Device("a", ((1, 0.001), (4, 0.002), (TYPICAL_TOKENS, 0.003), (16, 0.02), (64, 0.3)))
    assert bent.seconds == interpolate(bent.layer, TYPICAL_TOKENS) == 0.003


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_the_slow_device_is_left_out_where_the_others_are_faster_without_it() -> None:
    fleet = [device("draft"), device("a", drafts=False), device("b", drafts=False), device("snail", 0.05, drafts=False)]
    found = plan(fleet, ModelSizes.even(16), near, WORKLOAD)
    assert "snail" not in [stage.device.name for stage in found.chosen.stages]
    assert found.chosen.draft.name == "draft"


def test_every_device_that_can_draft_is_tried_as_the_drafter() -> None:
    fleet = [device("a"), device("b", 1.1), device("c", 1.2)]
    found = plan(fleet, ModelSizes.even(8), near, WORKLOAD)
    assert {each.draft.name for each in found.candidates} == {"a", "b", "c"}
    kept = plan(fleet, ModelSizes.even(8), near, WORKLOAD, drafter="b")
    assert {each.draft.name for each in kept.candidates} == {"b"}


def test_candidates_come_fastest_first_and_hold_every_layer_once() -> None:
    found = plan([device("draft"), device("a"), device("b", 2.0)], ModelSizes.even(10), near, WORKLOAD)
    speeds = [each.best.tokens_per_second for each in found.candidates]
    assert speeds == sorted(speeds, reverse=True)
    for each in found.candidates:
        assert [layer for stage in each.stages for layer in range(stage.first, stage.end)] == list(range(10))


def names(found: planner.Plan) -> list[str]:
    """Of each candidate the draft node and the stages, each a letter."""
    return ["".join((each.draft.name, *(stage.device.name for stage in each.stages))) for each in found.candidates]


def test_equal_devices_in_other_places_are_one_candidate_with_the_first_places() -> None:
    model = ModelSizes.even(8)
    fleet = [device(name) for name in "abcde"]
    assert sorted(names(plan(fleet, model, near, WORKLOAD))) == ["ab", "abc", "abcd", "abcde"]
    assert sorted(names(plan(fleet, model, near, WORKLOAD, present="c"))) == ["ca", "cab", "cabd", "cabde"]
    # Times that were measured, or divided, differ by less than anybody notices.
    nearly = [device(name, 1.0 + index * 1e-6) for index, name in enumerate("abcde")]
    found = plan(nearly, model, near, WORKLOAD, present="a").candidates
    assert [len(each.stages) for each in found] == list(dict.fromkeys(len(each.stages) for each in found))
    assert {each.draft.name for each in found} == {"a"}


def test_devices_are_not_equal_where_their_links_are_not() -> None:
    def link(origin: str, target: str) -> LinkTime:
        return LinkTime(latency=0.05) if "c" in (origin, target) else LINK

    found = names(plan([device(name) for name in "abc"], ModelSizes.even(8), link, WORKLOAD))
    assert {"abc", "cab"} <= set(found)
    assert "bac" not in found


def test_another_drafts_only_where_that_is_faster_by_more_than_noise() -> None:
    fleet = [device("a"), replace(device("b"), draft=DraftTime(0.00995)), replace(device("c"), draft=DraftTime(0.0099))]
    model = ModelSizes.even(8)
    fastest, kept = plan(fleet, model, near, WORKLOAD), plan(fleet, model, near, WORKLOAD, present="a")
    assert (fastest.chosen.draft.name, kept.chosen.draft.name) == ("c", "a")
    assert sorted(names(fastest)) == sorted(names(kept))
    slow = [replace(device("a"), draft=DraftTime(0.1)), *fleet[1:]]
    assert plan(slow, model, near, WORKLOAD, present="a").chosen.draft.name == "c"


def test_the_best_for_each_number_of_stages_is_shown_whatever_else_is_faster() -> None:
    fleet = [device(name, 1.0 + 0.1 * index) for index, name in enumerate("abcde")]
    found = plan(fleet, ModelSizes.even(8), near, WORKLOAD)
    for most in (1, 4, 6, 30):
        shown = found.shown(most)
        assert len(shown) == max(4, min(most, len(found.candidates)))
        assert list(shown) == [each for each in found.candidates if each in shown]
        for count in (1, 2, 3, 4):
            best = next(each for each in found.candidates if len(each.stages) == count)
            assert best in shown


def test_the_bottleneck_is_the_slowest_stage_or_the_link_that_takes_longer() -> None:
    fleet = [device("draft"), device("a", 1.0, 40, drafts=False), device("b", 0.5, 80, drafts=False)]
    model = ModelSizes.even(12, layer_bytes=10)
    assert plan(fleet, model, near, WORKLOAD, drafter="draft").chosen.bottleneck == "b"
    modem = LinkTime(latency=0.05, rate=100_000.0, message=0.05, token_bytes=8192)
    slow = plan(fleet, model, lambda *_: modem, WORKLOAD, drafter="draft")
    assert slow.chosen.bottleneck == "the link a -> b"


def test_speculation_is_advised_against_where_it_is_slower() -> None:
    steep = Device("a", ((1, 0.001), (2, 0.002)), None)
    found = plan([device("draft", 0.001), steep], ModelSizes.even(4), near, WORKLOAD)
    assert found.chosen.best.tokens_per_second >= found.chosen.of("flowspec").tokens_per_second
    assert found.chosen.of("autoregressive").tokens_per_second > 0.0


def test_a_model_that_fits_nowhere_is_an_error_with_the_bytes() -> None:
    fleet = [device("draft"), device("a", memory=10**9, drafts=False)]
    with pytest.raises(ConfigurationError, match=r"needs 4.00 GB, 0.50 GB for a single layer; .* a has 1.00 GB"):
        plan(fleet, ModelSizes.even(8, 500_000_000), near, WORKLOAD)


def test_the_memory_of_the_draft_node_does_not_count_for_the_layers() -> None:
    fleet = [device("a", memory=8 * GB), device("b", memory=GB), device("c", memory=2 * GB)]
    with pytest.raises(ConfigurationError, match=r"beside b, which drafts, the 2 .* have 10.00 GB, but no division"):
        plan(fleet, ModelSizes.even(3, 3 * GB), near, WORKLOAD, drafter="b")
    with pytest.raises(ConfigurationError, match=r"beside a, which drafts, the 2 .* have 3.00 GB\n"):
        plan(fleet, ModelSizes.even(3, 3 * GB), near, WORKLOAD, drafter="a")


def test_bytes_are_told_in_a_unit_that_says_something() -> None:
    fleet = [device("draft"), device("a", memory=3_000_000, drafts=False)]
    with pytest.raises(ConfigurationError, match=r"needs 4.00 MB, 1.00 MB for a single layer; .* a has 3.00 MB"):
        plan(fleet, ModelSizes.even(4, 1_000_000), near, WORKLOAD)


def test_a_drafter_that_fits_nowhere_is_an_error_of_its_own() -> None:
    model = replace(ModelSizes.even(4, GB), draft_bytes=3 * GB)
    stages = [device("b", memory=8 * GB, drafts=False), device("c", memory=8 * GB, drafts=False)]
    with pytest.raises(ConfigurationError, match=r"the drafter needs 3.00 GB; a has 2.00 GB\n"):
        plan([device("a", memory=2 * GB), *stages], model, near, WORKLOAD)
    with pytest.raises(ConfigurationError, match=r"the drafter needs 3.00 GB; d has 2.50 GB, and no other"):
        plan([device("a", memory=2 * GB), device("d", memory=5 * GB // 2), *stages], model, near, WORKLOAD)


def test_a_device_alone_is_told_that_a_stage_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="there is no device for a stage beside a, which drafts"):
        plan([device("a")], ModelSizes.even(4, GB), near, WORKLOAD)
    only_drafts = Device("b", ((1, inf),), None, DraftTime(0.01))
    with pytest.raises(ConfigurationError, match="there is no device for a stage beside a, which drafts"):
        plan([device("a"), only_drafts], ModelSizes.even(4, GB), near, WORKLOAD, drafter="a")


def test_options_are_those_of_their_policy() -> None:
    fleet = [device("draft"), device("a", drafts=False), device("b", drafts=False)]
    usual = plan(fleet, ModelSizes.even(8), near, WORKLOAD, drafter="draft").chosen
    small = plan(
        fleet, ModelSizes.even(8), near, WORKLOAD, drafter="draft", options={"flowspec": FlowspecOptions(tree=2)}
    ).candidates
    same = next(each for each in small if each.stages == usual.stages)
    assert same.of("flowspec").tokens_per_second < usual.of("flowspec").tokens_per_second
    assert same.of("autoregressive") == usual.of("autoregressive")


# ---- more devices than can be tried in every way ---------------------------------------------------------------------


def fleet_of(fast: int, fast_memory: int | None, slow: int, slow_memory: int | None) -> list[Device]:
    """A draft node, fast devices and slow ones."""
    return [
        device("draft"),
        *(device(f"fast-{index}", 2.0, fast_memory, drafts=False) for index in range(fast)),
        *(device(f"slow-{index}", 1.0, slow_memory, drafts=False) for index in range(slow)),
    ]


def test_fast_devices_that_hold_no_layer_are_not_in_the_way() -> None:
    found = plan(fleet_of(6, GB // 2, 6, 2 * GB), ModelSizes.even(12, GB), near, WORKLOAD)
    assert [stage.device.name for stage in found.chosen.stages] == [f"slow-{index}" for index in range(6)]


def test_a_tiny_device_hides_no_number_of_stages() -> None:
    found = plan(fleet_of(1, GB // 2, 11, 2 * GB), ModelSizes.even(12, GB), near, WORKLOAD)
    assert {len(each.stages) for each in found.candidates} == {6, 7, 8, 9, 10, 11}


def test_devices_with_little_memory_give_way_to_slower_ones_with_more() -> None:
    found = plan(fleet_of(6, GB, 6, 2 * GB), ModelSizes.even(12, GB), near, WORKLOAD)
    assert {len(each.stages) for each in found.candidates} == {6, 7, 8, 9, 10, 11, 12}


def test_exchanges_go_on_while_the_slowest_stage_gets_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "MOST_SUBSETS", 0)
    found = plan(fleet_of(5, GB, 6, None), ModelSizes.even(12, GB), near, WORKLOAD)
    six = next(each for each in found.candidates if len(each.stages) == 6)
    assert max(stage.end - stage.first for stage in six.stages) == 2


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_where_layers_are_alike_exchanges_find_a_division_if_there_is_one(data: st.DataObject) -> None:
    model = ModelSizes.even(data.draw(st.integers(1, 8)), 2)
    devices = [
        device(str(index), data.draw(st.sampled_from((0.5, 1.0, 2.0))), data.draw(st.none() | st.integers(0, 9)))
        for index in range(data.draw(st.integers(1, 5)))
    ]
    count = data.draw(st.integers(1, len(devices)))
    possible = any(divide(chosen, model) is not None for chosen in combinations(devices, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "MOST_SUBSETS", 0)
        found = planner._best_choice(devices, count, model)
    assert (found is not None) == possible


def test_somebody_has_to_draft() -> None:
    with pytest.raises(ConfigurationError, match="no device can hold the drafter"):
        plan([device("a", drafts=False), device("b", drafts=False)], ModelSizes.even(4), near, WORKLOAD)
