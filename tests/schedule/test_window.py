from __future__ import annotations

import pytest

from flowspec.schedule.events import PipeProfile
from flowspec.schedule.window import MOST_IN_FLIGHT, PUNCTUAL, UNPUNCTUAL_SECONDS, PipeModel

Curve = tuple[tuple[int, float], ...]


def flat(seconds: float) -> Curve:
    return ((1, seconds), (16, seconds))


def pipe(*stages: float, link: float = 0.0, cores: int | None = None) -> PipeModel:
    curves = tuple(flat(seconds) for seconds in stages)
    shared = ((cores, tuple(range(len(stages))), curves),) if cores else ()
    return PipeModel(PipeProfile(curves, (link,) * (len(stages) + 1), shared, bool(cores)))


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (pipe(0.06, 0.06, 0.06, 0.06), 4),
        (pipe(0.06, 0.06, 0.06, 0.06, link=0.008), 5),
        (pipe(0.002, 0.002, 0.002, 0.002, cores=2), 1),
        (pipe(0.002, 0.002, 0.002, 0.002, cores=3), 2),
        (pipe(0.06, 0.06, 0.06, 0.24), 2),
        (pipe(0.01), 1),
        (pipe(0.015, 0.015, link=0.03), 8),
        (pipe(0.015, 0.015, link=0.5), MOST_IN_FLIGHT),
        (pipe(0.0001, 0.0001, link=0.001), 3),
    ],
    ids=[
        "own cores",
        "own cores, slow links",
        "shared cores",
        "more shared cores",
        "one slow stage",
        "one stage",
        "long links",
        "nothing but links",
        "no stage is faster than its software",
    ],
)
def test_the_window_is_what_keeps_the_bottleneck_busy(model: PipeModel, window: int) -> None:
    assert model.window == window


def alone(model: PipeModel) -> PipeModel:
    return PipeModel(model.profile, alone=True)


@pytest.mark.parametrize(
    ("model", "window", "by_itself"),
    [
        (pipe(0.06, 0.06, 0.06, 0.06), 4, 3),
        (pipe(0.06, 0.06, 0.06, 0.06, link=0.005), 4, 4),
        (pipe(0.06, 0.06, 0.06, 0.06, link=0.012), 5, 4),
        (pipe(0.12, 0.06, 0.06, 0.06, link=0.006), 3, 2),
        (pipe(0.06, 0.12, 0.06, 0.06, link=0.006), 3, 3),
        (pipe(0.12, 0.06), 1, 1),
        (pipe(0.12, 0.06, link=0.004), 2, 2),
        (pipe(0.06), 1, 1),
        (pipe(0.002, 0.002, 0.002, 0.002, cores=3), 2, 2),
        (pipe(0.015, 0.015, 0.015, 0.015, link=0.03), 14, 11),
    ],
    ids=[
        "no links",
        "links",
        "longer links",
        "slow first stage",
        "slow second stage",
        "between one and two",
        "never one for one and a half",
        "one stage",
        "shared cores",
        "long links",
    ],
)
def test_one_session_alone_leaves_a_first_stage_that_is_the_bottleneck_idle_now_and_then(
    model: PipeModel, window: int, by_itself: int
) -> None:
    assert model.window == window
    assert alone(model).window == by_itself


def test_a_stage_that_is_paid_by_the_token_is_kept_busy_for_one_session_too() -> None:
    by_token: Curve = ((1, 0.1), (8, 0.25), (16, 0.42))
    model = PipeModel(PipeProfile((by_token,) * 4, (0.001,) * 5))
    assert alone(model).window == model.window == 4


def test_stages_that_share_cores_are_as_slow_as_their_work_together() -> None:
    assert pipe(0.002, 0.002, 0.002, 0.002, cores=2).bottleneck(8) == pytest.approx(0.004)
    assert pipe(0.002, 0.002, 0.002, 0.002).bottleneck(8) == pytest.approx(0.002)


def test_a_link_is_a_bottleneck_as_far_as_it_is_taken_and_not_for_being_long() -> None:
    curves = (flat(0.002),) * 2
    model = PipeModel(PipeProfile(curves, (0.01,) * 3, carrying=(0.0, 0.004, 0.0)))
    assert model.bottleneck(8) == pytest.approx(0.004)
    assert pipe(0.002, 0.002, link=0.01).bottleneck(8) == pytest.approx(0.002)


def test_nodes_with_a_core_each_do_not_contend() -> None:
    assert not pipe(0.002, 0.002).contended
    assert not pipe(0.002, 0.002, cores=3).contended
    assert pipe(0.002, 0.002, cores=2).contended


def test_more_than_one_segment_queues_at_stage_one_only_when_credit_takes_longer_than_a_forward() -> None:
    assert pipe(0.06, link=0.002).queue == 1
    assert pipe(0.06, link=0.04).queue == 2
    assert pipe(0.06, link=0.1).queue == 4
    assert pipe(0.0001, link=1.0).queue == MOST_IN_FLIGHT


def test_prompts_go_in_chunks_that_keep_all_stages_busy() -> None:
    curve = tuple((n, 0.01 + 0.001 * n) for n in (1, 16, 64, 128))
    steep = PipeModel(PipeProfile((curve,) * 4))
    assert steep.prefill_chunk(1000) in (32, 64)
    assert PipeModel(PipeProfile((flat(0.01),) * 4)).prefill_chunk(1000) == 128


def test_a_segment_may_leave_so_late_that_it_arrives_a_little_before_stage_one_is_free() -> None:
    model = pipe(0.06, 0.06, link=0.008)
    assert model.slack(4) == pytest.approx(0.06 * PUNCTUAL - 2 * 0.008 - UNPUNCTUAL_SECONDS)


def test_nothing_is_put_off_where_the_way_takes_longer_than_the_work() -> None:
    assert pipe(0.01, 0.01, link=0.02).slack(4) == 0.0
    assert pipe(0.06, 0.06).slack(0) == 0.0
