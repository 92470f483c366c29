"""Emulated devices on a clock that only waiting moves: when they begin, when they are done, and when work dies."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from flowspec.runtime import emulation
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.runtime.lateness import MOST, Lateness
from flowspec.topology.sections import DraftEmulation, Emulation


class FakeClock(threading.Event):
    """An event whose waits move the clock, and never hear anything by themselves."""

    now = 0.0
    late = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout + self.late
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(emulation, "time", SimpleNamespace(perf_counter=clock.perf_counter, sleep=clock.sleep))
    return clock


def test_work_that_waited_begins_when_the_device_is_free(clock: FakeClock) -> None:
    device = EmulatedDevice(1.0, 0.1)
    device.arrived(1)
    clock.now = 0.2
    device.arrived(2)
    assert device.begin(1) == 0.0
    assert device.hold(0.0, 5, 4, lambda: True, clock)
    assert clock.now == pytest.approx(1.5)
    clock.now = 1.6  # What was done in between does not delay the device.
    began = device.begin(2)
    assert began == pytest.approx(1.5)
    assert device.hold(began, 1, 4, lambda: True, clock)
    assert clock.now == pytest.approx(2.6)


def test_a_free_device_begins_when_work_arrives(clock: FakeClock) -> None:
    device = EmulatedDevice(1.0)
    clock.now = 5.0
    device.arrived(3)
    clock.now = 5.4
    assert device.begin(3) == 5.0


def test_arrivals_of_work_that_never_came_to_be_computed_are_forgotten(clock: FakeClock) -> None:
    device = EmulatedDevice(1.0)
    for ticket in range(10):
        clock.now = float(ticket)
        device.arrived(ticket)
    assert device.begin(8) == 8.0
    assert device.begin(9) == 9.0
    assert device.begin(10) == 9.0


def test_work_that_dies_frees_the_device_after_its_layer(clock: FakeClock) -> None:
    device = EmulatedDevice(4.0)
    device.arrived(1)
    device.arrived(2)
    began = device.begin(1)
    clock.now = 1.5
    # Heard of at 1.5 s, in the second of four layers: that one is computed to its end.
    assert not device.hold(began, 1, 4, lambda: False, clock)
    assert clock.now == pytest.approx(2.0)
    assert device.begin(2) == pytest.approx(2.0)


def test_no_device_is_emulated_that_is_faster_than_this_one(clock: FakeClock) -> None:
    device = EmulatedDevice(1.0)
    device.arrived(1)
    device.arrived(2)
    began = device.begin(1)
    clock.now = 3.0
    assert device.hold(began, 1, 4, lambda: True, clock)
    assert clock.now == 3.0
    assert device.begin(2) == 3.0


def test_what_has_died_frees_the_device_when_its_layer_ends(clock: FakeClock) -> None:
    device = EmulatedDevice(1.0)
    device.arrived(1)
    device.arrived(2)
    began = device.begin(1)
    clock.now = 0.6
    assert not device.hold(began, 1, 4, lambda: False, clock)
    assert device.begin(2) == pytest.approx(0.75)


@pytest.mark.parametrize(("layers", "longer"), [(0, 1.0), (1, 1.0), (3, 2.2)])
def test_a_deeper_drafter_takes_longer_steps(layers: int, longer: float) -> None:
    node = Emulation(draft=DraftEmulation(base_ms=10, per_token_ms=1, layer_share=0.6))
    assert EmulatedDevice.of_drafter(node, layers).of(5) == pytest.approx(0.015 * longer)


@pytest.mark.parametrize("node", [None, Emulation(), Emulation(base_ms=3)])
def test_a_drafter_is_not_emulated_unless_its_step_is(node: Emulation | None) -> None:
    assert not EmulatedDevice.of_drafter(node, 2).emulates


def test_without_times_nothing_is_emulated(clock: FakeClock) -> None:
    device = EmulatedDevice.like(None)
    clock.now = 2.0
    assert not device.emulates
    assert device.begin(1) == 2.0


def test_waits_are_shortened_by_their_usual_lateness(clock: FakeClock) -> None:
    lateness = Lateness()
    for late in (0.0001, 0.0004, 0.0002, 0.3, 0.0003):
        lateness.woke(late)
    assert lateness.lead == 0.0003
    for _ in range(100):
        lateness.woke(0.5)
    assert lateness.lead == MOST


def test_a_device_that_is_woken_late_is_on_time_on_average(clock: FakeClock) -> None:
    clock.late = 0.0005
    device = EmulatedDevice(1.0)
    for ticket in range(40):
        began = device.begin_at(clock.now)
        assert device.hold(began, 1, 4, lambda: True, clock)
        if ticket:
            assert clock.now - began == pytest.approx(1.0, abs=1e-6)
