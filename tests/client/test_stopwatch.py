"""The figures of a request that went on at another coordinator are of one and the same request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flowspec.stopwatch import Stopwatch
from tests.client.coordinators import STATS

LATER = replace(STATS, new_tokens=21, seconds=2.0, tokens_per_second=5.0, time_to_first_token=0.5, resumed=10)
"""What the second coordinator says: 11 of 21 tokens in 2 seconds."""


def test_without_a_break_the_figures_are_the_coordinators() -> None:
    watch = Stopwatch(asked=100.0)
    watch.tokens_came(100.2)
    assert watch.whole(STATS) is STATS


def test_the_times_are_those_of_the_whole_and_include_the_break() -> None:
    watch = Stopwatch(asked=100.0)
    watch.tokens_came(100.25)
    watch.tokens_came(101.0)
    watch.resume(105.0)
    watch.tokens_came(105.5)
    watch.tokens_came(190.0)  # by a reader who came back late
    whole = watch.whole(LATER)
    assert (whole.time_to_first_token, whole.seconds) == (0.25, 7.25)
    assert whole.tokens_per_second == pytest.approx(20 / 7.25)
    assert (whole.new_tokens, whole.resumed, whole.restarts) == (21, 10, 1)
    assert (whole.verdicts, whole.accepted) == (LATER.verdicts, LATER.accepted)


def test_several_breaks_and_those_that_the_coordinator_knows_are_counted_together() -> None:
    watch = Stopwatch(asked=0.0)
    watch.tokens_came(1.0)
    watch.resume(2.0)
    watch.tokens_came(2.5)
    watch.resume(10.0)
    watch.tokens_came(10.5)
    whole = watch.whole(replace(LATER, restarts=3))
    assert (whole.restarts, whole.seconds) == (5, 11.5)


def test_a_break_before_the_first_token_counts_as_time_to_it() -> None:
    watch = Stopwatch(asked=0.0)
    watch.resume(4.0)
    watch.tokens_came(4.625)
    whole = watch.whole(replace(LATER, resumed=0))
    assert (whole.time_to_first_token, whole.seconds, whole.restarts) == (4.625, 1.875, 1)


def test_where_only_the_end_was_missing_nothing_has_taken_time_since() -> None:
    watch = Stopwatch(asked=0.0)
    watch.tokens_came(1.0)
    watch.tokens_came(3.0)
    watch.resume(60.0)
    whole = watch.whole(replace(LATER, new_tokens=10, seconds=0.0, time_to_first_token=0.0))
    assert (whole.seconds, whole.tokens_per_second) == (2.0, 4.5)


def test_no_token_at_all_has_no_speed() -> None:
    watch = Stopwatch(asked=0.0)
    watch.resume(4.0)
    whole = watch.whole(replace(LATER, new_tokens=0, seconds=0.0, resumed=0))
    assert (whole.time_to_first_token, whole.seconds, whole.tokens_per_second) == (4.5, 0.0, 0.0)
