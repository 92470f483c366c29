"""Ratios and their intervals: against values that are known."""

from __future__ import annotations

import numpy as np
import pytest

from flowspec.bench.statistics import Pace, mean_ratio, total


def paces(*seconds: float, tokens: float = 100.0) -> dict[str, Pace]:
    return {str(number): Pace(tokens, each) for number, each in enumerate(seconds)}


def test_the_rate_is_all_tokens_over_all_seconds() -> None:
    assert total([Pace(10, 1), Pace(30, 3), Pace(20, 1)]) == Pace(60, 5)
    assert total([Pace(10, 1), Pace(30, 3), Pace(20, 1)]).rate == 12
    assert total([]).rate == 0


def test_a_constant_ratio_has_an_interval_of_no_width() -> None:
    """Questions differ tenfold in speed, but in pairs nothing varies: an unpaired interval would be wide."""
    slow = paces(1, 3, 10, 2)
    fast = {question: Pace(pace.tokens, pace.seconds / 2) for question, pace in slow.items()}
    found = mean_ratio([(fast, slow)])
    assert found.value == pytest.approx(2)
    assert found.interval == pytest.approx((2, 2))


def test_the_interval_of_two_questions_is_that_of_all_four_draws() -> None:
    """Drawn are the first twice, the second twice, or both: ratios 1, 3 and 2 (a half); 95 % hold all of them."""
    found = mean_ratio([({"a": Pace(1, 1), "b": Pace(3, 1)}, {"a": Pace(1, 1), "b": Pace(1, 1)})])
    assert found.value == pytest.approx(2)
    assert found.interval == pytest.approx((1, 3))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for number in range(200):
        slow = paces(*generator.uniform(1, 2, 30))
        fast = {name: Pace(pace.tokens, pace.seconds / generator.uniform(1, 3)) for name, pace in slow.items()}
        # All tokens over all seconds, so the truth is one over the mean of 1 / U(1, 3).
        low, high = mean_ratio([(fast, slow)], seed=number).interval or (0, 0)
        covered += low <= 2 / np.log(3) <= high
    assert 175 <= covered <= 200


def test_sets_weigh_alike_however_many_questions_they_have() -> None:
    many, few = paces(*[2.0] * 50), paces(2.0)
    double = {name: Pace(pace.tokens, 1.0) for name, pace in many.items()}
    assert mean_ratio([(double, many), (few, few)]).value == pytest.approx(1.5)


def test_only_questions_that_both_answered_count() -> None:
    fast, slow = paces(1, 1, 50), paces(2, 2)
    assert mean_ratio([(fast, slow)]).value == pytest.approx(2)
    with pytest.raises(ValueError, match="in common"):
        mean_ratio([({"a": Pace(1, 1)}, {"b": Pace(1, 1)})])


def test_a_single_question_has_no_interval() -> None:
    assert mean_ratio([(paces(1), paces(2))]).interval is None


def test_the_same_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(3)
    pair = [(paces(*generator.uniform(1, 2, 20)), paces(*generator.uniform(1, 2, 20)))]
    assert mean_ratio(pair) == mean_ratio(pair)
    assert mean_ratio(pair, seed=1).interval != mean_ratio(pair, seed=2).interval
