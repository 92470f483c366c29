from __future__ import annotations

import pytest

from flowspec.errors import ConfigurationError, InvariantViolation
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import (
    Command,
    FinishSession,
    OpenSession,
    PipeLost,
    PipeProfile,
    SegmentReturned,
    SegmentTaken,
    SendSegment,
    SessionReady,
    SessionRequested,
    SessionStopped,
)
from flowspec.wire.messages import RosterEntry

CURVE = ((1, 0.06), (16, 0.06))


def plain(session: str, prompt: tuple[int, ...] = (5, 6, 7), limit: int = 10) -> SessionRequested:
    return SessionRequested(session, prompt, "autoregressive", limit, frozenset())


def scheduler_with(*names: str, stages: int = 4) -> tuple[Scheduler, list[Command]]:
    """Sessions that are open; and the commands since the first was ready."""
    scheduler = Scheduler(PipeProfile((CURVE,) * stages))
    for name in names:
        scheduler.handle(plain(name))
    return scheduler, [command for name in names for command in scheduler.handle(SessionReady(name, 0))]


def owners(commands: list[Command]) -> list[str]:
    return [command.session for command in commands if isinstance(command, SendSegment)]


def test_a_session_is_opened_and_listed_before_anything_is_sent() -> None:
    scheduler = Scheduler()
    assert scheduler.handle(plain("a")) == [OpenSession("a", 0)]
    assert scheduler.roster() == (RosterEntry("a", 0),)
    assert not scheduler.idle


def test_the_roster_tells_the_newest_verdict() -> None:
    scheduler, _ = scheduler_with("a")
    scheduler.handle(SegmentReturned(1, "a", 0, 0, 2, 8))
    assert scheduler.roster() == (RosterEntry("a", 0, 2, 8),)


def test_no_more_than_the_queue_is_sent_before_stage_one_has_begun() -> None:
    scheduler, commands = scheduler_with("a", "b")
    assert owners(commands) == ["a"]
    assert owners(scheduler.handle(SegmentTaken(1))) == ["b"]


def test_credit_is_absolute_so_old_and_doubled_credit_changes_nothing() -> None:
    scheduler, _ = scheduler_with("a", "b", "c")
    assert owners(scheduler.handle(SegmentTaken(1))) == ["b"]
    assert owners(scheduler.handle(SegmentTaken(1))) == []
    assert owners(scheduler.handle(SegmentTaken(0))) == []


def test_a_segment_that_returns_implies_the_credit_for_it() -> None:
    scheduler, _ = scheduler_with("a", "b")
    assert owners(scheduler.handle(SegmentReturned(1, "a", 0, 0, 2, 8))) == ["b"]


def test_sessions_take_turns_when_there_are_more_than_the_pipe_holds() -> None:
    names = ("a", "b", "c", "d", "e", "f")
    scheduler, commands = scheduler_with(*names)
    turns = owners(commands)
    for ticket in range(1, 13):
        turns += owners(scheduler.handle(SegmentTaken(ticket)))
        session = turns[ticket - 1]
        state = scheduler.sessions[session]
        frontier = 2 + len(state.output)
        turns += owners(scheduler.handle(SegmentReturned(ticket, session, 0, 0, frontier, 8)))
        scheduler.check_integrity()
    assert turns[:12] == [*names, *names]


def test_a_finished_session_leaves_the_roster_and_its_tickets_still_return() -> None:
    scheduler, _ = scheduler_with("a")
    (finished,) = scheduler.handle(SessionStopped("a", "cancelled"))
    assert isinstance(finished, FinishSession)
    assert scheduler.roster() == ()
    assert (scheduler.in_flight, scheduler.idle) == (1, False)
    scheduler.handle(SegmentReturned(1, "a", 0, 0, 2, 8))
    assert scheduler.idle


def test_events_of_unknown_sessions_older_epochs_and_unknown_tickets_are_no_ops() -> None:
    scheduler, _ = scheduler_with("a")
    assert scheduler.handle(SessionStopped("x", "cancelled")) == []
    assert scheduler.handle(SessionReady("a", 7)) == []
    assert scheduler.handle(SegmentReturned(99, "a", 0, 0, 2, 8)) == []
    scheduler.check_integrity()


def test_a_segment_that_was_overtaken_makes_its_session_begin_again() -> None:
    scheduler, _ = scheduler_with("a", "b")
    scheduler.handle(SegmentTaken(1))
    commands = scheduler.handle(SegmentReturned(2, "b", 0, 0, 2, 8))
    assert [command for command in commands if isinstance(command, OpenSession)] == [OpenSession("a", 1)]
    assert scheduler.sessions["b"].output == [8]
    scheduler.check_integrity()


def test_a_lost_pipe_stops_every_session() -> None:
    scheduler, _ = scheduler_with("a", "b")
    scheduler.handle(SegmentTaken(1))
    commands = scheduler.handle(PipeLost())
    assert commands == []
    assert not any(session.active for session in scheduler.sessions.values())
    assert scheduler.in_flight == 0


def test_a_policy_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no policy 'fast'"):
        Scheduler().handle(SessionRequested("a", (1,), "fast", 1, frozenset()))


def test_the_same_name_twice_is_a_defect() -> None:
    scheduler, _ = scheduler_with("a")
    with pytest.raises(InvariantViolation, match="requested twice"):
        scheduler.handle(plain("a"))
