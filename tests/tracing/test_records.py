"""Records stay within their bound, survive the wire, and clocks of other machines are found out."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowspec.errors import MalformedMessage
from flowspec.tracing.clocks import MOST_SAMPLES, Clock, ClockEstimate
from flowspec.tracing.records import CAPACITY, LAYOUTS, SENT, VISIT, Recorder, joined, parts

SECOND = 10**9


def test_a_recorder_keeps_the_newest_and_counts_the_rest() -> None:
    recorder = Recorder(capacity=4)
    for ticket in range(10):
        recorder.add(SENT, 100 + ticket, ticket, 1)
    records, dropped = recorder.finish()
    assert [record[2] for record in records] == [6, 7, 8, 9]
    assert dropped == 6


def test_no_number_of_records_takes_more_than_the_capacity() -> None:
    recorder = Recorder()
    for ticket in range(2 * CAPACITY):
        recorder.add(SENT, 0, ticket, 1)
    records, dropped = recorder.finish()
    assert len(records) == dropped == CAPACITY


def test_threads_may_add_at_the_same_time() -> None:
    recorder = Recorder(capacity=100)

    def add() -> None:
        for _ in range(500):
            recorder.add(SENT, 0, 0, 0)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records, dropped = recorder.finish()
    assert (len(records), dropped) == (100, 1900)


INTS = st.integers(-(2**63), 2**63 - 1)
RECORDS = st.lists(
    st.integers(0, len(LAYOUTS) - 1).flatmap(lambda layout: st.tuples(st.just(layout), *[INTS] * LAYOUTS[layout].size)),
    max_size=20,
)


@given(RECORDS, st.integers(1, 7))
def test_records_come_back_from_their_columns(records: list[tuple[int, ...]], size: int) -> None:
    columns = list(parts(records, size))
    assert len(columns) == max(1, -(-len(records) // size))
    assert [record for part in columns for record in joined(*part)] == records


@pytest.mark.parametrize(
    ("layouts", "values"),
    [((99,), (1,)), ((-1,), (1,)), ((SENT,), (1, 2)), ((SENT,), (1, 2, 3, 4)), ((), (1,)), ((VISIT, SENT), (1, 2, 3))],
)
def test_columns_that_are_no_records_are_refused(layouts: tuple[int, ...], values: tuple[int, ...]) -> None:
    with pytest.raises(MalformedMessage):
        joined(layouts, values)


def test_without_samples_a_clock_is_our_own() -> None:
    assert Clock().here(12345) == 12345
    assert Clock().error == 0.0
    assert ClockEstimate().clock() is None


def test_a_clock_that_is_ahead_and_drifts_is_known_to_within_its_error() -> None:
    ahead, drift = 7_000 * SECOND, 40e-6
    random_source = random.Random(3)
    estimate = ClockEstimate()

    def there(here: int) -> int:
        return here + ahead + round(here * drift)

    for step in range(4000):
        sent = step * SECOND // 20
        out, back = (random_source.randint(200_000, 5_000_000) for _ in range(2))
        estimate.add(sent, there(sent + out), sent + out + back)
    clock = estimate.clock()
    assert clock is not None
    assert len(clock.samples) <= MOST_SAMPLES
    assert clock.error < 0.001
    assert clock.offset == pytest.approx(7000, abs=0.01)
    for here in range(0, 200 * SECOND, SECOND):
        # Between two samples the drift is even; before the first and behind the last it is not followed.
        slack = drift * 10 * SECOND
        assert abs(clock.here(there(here)) - here) <= clock.error * 1e9 + slack


def test_the_memory_of_a_clock_is_bounded() -> None:
    estimate = ClockEstimate()
    for hour in range(1000):
        estimate.add(hour * 3600 * SECOND, hour * 3600 * SECOND + 50, hour * 3600 * SECOND + 100)
    clock = estimate.clock()
    assert clock is not None
    assert len(clock.samples) <= MOST_SAMPLES
    assert clock.here(5 * SECOND) == pytest.approx(5 * SECOND, abs=100)
