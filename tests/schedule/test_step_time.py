"""What a step of the drafter will take follows from what steps took."""

from __future__ import annotations

import pytest

from flowspec.schedule.step_time import StepTime


def test_nothing_is_known_before_the_first_step() -> None:
    steps = StepTime()
    assert not steps.known
    assert (steps.of(10), steps.per_token) == (0.0, 0.0)


def test_steps_of_one_size_do_not_tell_what_a_token_costs() -> None:
    steps = StepTime()
    for _ in range(5):
        steps.measured(10, 0.02)
    assert steps.per_token == 0.0
    assert steps.of(20) == pytest.approx(0.02)


def test_a_line_is_found_and_read_between_and_beyond_the_sizes() -> None:
    steps = StepTime()
    for tokens in (1, 10, 4, 12, 1, 8):
        steps.measured(tokens, 0.005 + 0.001 * tokens)
    assert steps.per_token == pytest.approx(0.001)
    assert steps.of(6) == pytest.approx(0.011)
    assert steps.of(20) == pytest.approx(0.025)


def test_the_newest_steps_count_most() -> None:
    steps = StepTime()
    for seconds in (0.001, 0.5):
        for _ in range(60):
            steps.measured(4, seconds)
    assert steps.of(4) == pytest.approx(0.5, rel=0.01)


def test_steps_that_are_faster_with_more_tokens_give_no_negative_cost() -> None:
    steps = StepTime()
    for tokens, seconds in ((1, 0.02), (12, 0.01), (1, 0.02)):
        steps.measured(tokens, seconds)
    assert steps.per_token == 0.0
    assert steps.of(30) > 0.0
