from __future__ import annotations

from flowspec.roles.stand_ins import StandIns


def known(*heard: str) -> StandIns:
    stand_ins = StandIns(["a", "b"], patience=2.0, deadline=1.0)
    for name in heard:
        stand_ins.standby(name, f"{name}1", 0.0)
    return stand_ins


def test_a_stage_has_time_to_come_back_by_itself() -> None:
    stand_ins = known("a")
    stand_ins.lost("stage-1", 0.0)
    stand_ins.standby("a", "a1", 1.9)
    assert stand_ins.due(1.9) == []
    stand_ins.found("stage-1")
    assert stand_ins.due(2.5) == []


def test_the_first_spare_that_lives_gets_the_place() -> None:
    stand_ins = known("a")
    stand_ins.lost("stage-1", 0.0)
    stand_ins.standby("b", "b1", 2.0)
    assert stand_ins.due(2.0) == ["stage-1"]
    assert stand_ins.places == (("stage-1", "b"),)
    assert stand_ins.expected("stage-1") == "b1"
    assert stand_ins.stage_of("b") == "stage-1"
    assert stand_ins.due(2.0) == []


def test_a_stand_in_that_falls_silent_or_was_started_again_has_failed() -> None:
    for silent in (True, False):
        stand_ins = known("a")
        stand_ins.lost("stage-1", -2.0)
        assert stand_ins.due(0.0) == ["stage-1"]
        assert stand_ins.failed(0.5) == []
        if not silent:
            stand_ins.standby("a", "a2", 1.5)
        assert stand_ins.failed(1.6) == ["stage-1"]
        stand_ins.lost("stage-1", 1.6)
        assert stand_ins.places == ()
        assert stand_ins.expected("stage-1") is None


def test_no_spare_stands_in_twice() -> None:
    stand_ins = known("a")
    stand_ins.lost("stage-1", -2.0)
    stand_ins.lost("stage-2", -2.0)
    assert stand_ins.due(0.0) == ["stage-1"]


def test_strangers_are_not_heard() -> None:
    stand_ins = known()
    stand_ins.standby("c", "c1", 0.0)
    stand_ins.lost("stage-1", -2.0)
    assert stand_ins.due(0.0) == []


def test_nobody_is_blamed_for_silence_while_this_process_was_held_up() -> None:
    stand_ins = known("a")
    stand_ins.lost("stage-1", -2.0)
    stand_ins.due(0.0)
    stand_ins.excuse(5.0)
    assert stand_ins.failed(5.5) == []


def test_a_spare_that_had_a_place_keeps_it_at_the_next_coordinator() -> None:
    stand_ins = known()
    stand_ins.lost("stage-1", 0.0)
    assert stand_ins.adopt("stage-1", "a", "a1", 0.0)
    assert stand_ins.places == (("stage-1", "a"),)
    assert stand_ins.expected("stage-1") == "a1"
    assert stand_ins.failed(0.5) == []
    assert stand_ins.failed(1.5) == ["stage-1"]


def test_a_spare_keeps_no_place_that_is_anothers_and_none_that_it_has_lost() -> None:
    stand_ins = known("a", "b")
    stand_ins.lost("stage-1", -2.0)
    assert stand_ins.due(0.0) == ["stage-1"]
    assert not stand_ins.adopt("stage-1", "b", "b1", 0.0)
    assert not stand_ins.adopt("stage-2", "a", "a1", 0.0)
    stand_ins.lost("stage-1", 0.5)
    assert not stand_ins.adopt("stage-1", "a", "a1", 0.5)
    assert not stand_ins.adopt("stage-1", "c", "c1", 0.5)
    assert stand_ins.adopt("stage-1", "a", "a2", 0.5)


def test_a_spare_that_was_told_to_stop_gets_no_place() -> None:
    stand_ins = known("a", "b")
    stand_ins.retire("a1")
    stand_ins.standby("a", "a1", 0.5)
    assert stand_ins.idle(0.5) == "b"
    assert stand_ins.living(0.5) == ("a", "b")
    stand_ins.standby("a", "a2", 0.5)
    assert stand_ins.idle(0.5) == "a"


def test_a_stage_that_will_not_come_back_is_not_waited_for() -> None:
    stand_ins = known("a")
    stand_ins.lost("stage-1", 0.0)
    stand_ins.hasten("stage-1", 0.0)
    assert stand_ins.due(0.0) == ["stage-1"]
