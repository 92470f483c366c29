"""The planner against every division there is, and against what a small fleet plainly wants."""

from __future__ import annotations

from itertools import combinations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import ConfigurationError
from flowspec.planning.division import Device, ModelSizes, Ranges, divide
from flowspec.planning.estimate import Workload
from flowspec.planning.pipe import DraftTime, LinkTime
from flowspec.planning.planner import plan
from tests.planning.pipes import LANGUAGE, LINK

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


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_the_slow_device_is_left_out_where_the_others_are_faster_without_it() -> None:
    fleet = [device("draft"), device("a", drafts=False), device("b", drafts=False), device("snail", 0.05, drafts=False)]
    found = plan(fleet, ModelSizes.even(16), near, WORKLOAD)
    assert "snail" not in [stage.device.name for stage in found.chosen.stages]
    assert found.chosen.draft.name == "draft"


def test_every_device_that_can_draft_is_tried_as_the_drafter() -> None:
    fleet = [device("a"), device("b"), device("c")]
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
    with pytest.raises(ConfigurationError, match=r"needs 4.00 GB, 0.50 GB for a single layer; .* have 1.00 GB"):
        plan(fleet, ModelSizes.even(8, 500_000_000), near, WORKLOAD)


def test_somebody_has_to_draft() -> None:
    with pytest.raises(ConfigurationError, match="no device can hold the drafter"):
        plan([device("a", drafts=False), device("b", drafts=False)], ModelSizes.even(4), near, WORKLOAD)
