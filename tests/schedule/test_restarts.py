"""Stages that die and messages that vanish cost time, never a token: sessions begin again in a new epoch."""

from __future__ import annotations

from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.schedule.arbiter import MOST_BARREN, Scheduler
from flowspec.schedule.events import (
    BreakSession,
    FinishSession,
    OpenSession,
    PipeLost,
    PipeRestored,
    SegmentReturned,
    SegmentsLost,
    SendSegment,
    SessionBroken,
    SessionReady,
    SessionRequested,
    SessionStopped,
)
from flowspec.schedule.policies import POLICIES
from flowspec.schedule.session import Session
from tests.schedule.fake_pipe import Drafter, Target, Timing
from tests.schedule.faulty_pipe import FaultyPipe
from tests.schedule.test_arbiter import owners, plain, scheduler_with
from tests.schedule.test_interleavings import profile, wild


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_crashes_and_losses_change_no_token(data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, 4), "stages")
    target = Target(data.draw(st.integers(0, 2**32), "target"), data.draw(st.sampled_from((3, 50_000)), "vocabulary"))
    timing = Timing(
        stages=(lambda tokens: 0.01 * (1 + 0.02 * tokens),) * stages,
        link=data.draw(st.sampled_from((0.0, 0.01)), "link"),
        message=0.002,
        draft=lambda tokens: 0.002,
        layers=4,
        cores=data.draw(st.sampled_from((None, 1)), "cores"),
        jitter=wild,
    )
    scheduler = Scheduler(profile(stages, 0.01, None))
    pipe = FaultyPipe(
        scheduler,
        timing,
        target=target,
        drafter=Drafter(target),
        verdict_loss=0.3,
        seed=data.draw(st.integers(0, 2**32), "seed"),
        loss=data.draw(st.sampled_from((0.0, 0.02, 0.2)), "loss"),
        # Fewer in a row than a session may fail without a token.
        faults=data.draw(st.integers(0, 5), "faults"),
    )
    requests = []
    for number in range(data.draw(st.integers(1, 3), "sessions")):
        request = SessionRequested(
            session=f"s{number}",
            prompt=tuple(range(data.draw(st.integers(1, 90), "prompt"))),
            policy=data.draw(st.sampled_from(("flowspec", *POLICIES)), "policy"),
            max_new_tokens=data.draw(st.integers(1, 40), "limit"),
            eos=data.draw(st.sampled_from((frozenset(), frozenset({1}))), "eos"),
            recalls=data.draw(st.booleans(), "recalls"),
        )
        requests.append(request)
        pipe.request(request, when=data.draw(st.sampled_from((0.0, 0.1)), "when"))
    for _ in range(data.draw(st.integers(0, 2), "crashes")):
        index = data.draw(st.integers(0, stages - 1), "stage")
        seconds = data.draw(st.sampled_from((0.0, 0.05, 4.0)), "down")
        pipe.at(data.draw(st.floats(0.0, 1.5), "crash at"), partial(pipe.crash, index, seconds))
    results = pipe.run()
    for request in requests:
        result = results[request.session]
        assert result.tokens == target.decode(request.prompt, request.max_new_tokens, request.eos)
        assert result.finished is not None
    assert scheduler.idle


def test_a_replay_decrees_the_prompt_and_every_token_that_was_emitted() -> None:
    scheduler, _ = scheduler_with("a")
    scheduler.handle(SegmentReturned(1, "a", 0, 0, 2, 8))
    assert scheduler.handle(PipeLost()) == []
    assert scheduler.in_flight == 0
    assert scheduler.handle(PipeRestored()) == [OpenSession("a", 1)]
    (replay,) = scheduler.handle(SessionReady("a", 1))
    assert isinstance(replay, SendSegment)
    assert (replay.epoch, replay.number, replay.decree) == (1, 0, 3)
    assert replay.draft.tokens == (5, 6, 7, 8)
    assert scheduler.sessions["a"].output == [8]
    scheduler.check_integrity()


def test_nothing_is_sent_while_a_stage_is_lost_and_requests_wait() -> None:
    scheduler, _ = scheduler_with("a")
    scheduler.handle(PipeLost())
    assert scheduler.handle(plain("b")) == []
    assert scheduler.handle(SessionReady("a", 0)) == []
    assert scheduler.handle(PipeRestored()) == [OpenSession("a", 1), OpenSession("b", 1)]


def test_several_losses_in_a_row_each_begin_a_new_epoch() -> None:
    scheduler, _ = scheduler_with("a")
    for epoch in range(1, 4):
        scheduler.handle(PipeLost())
        scheduler.handle(PipeLost())
        assert scheduler.handle(PipeRestored()) == [OpenSession("a", epoch)]
        assert owners(scheduler.handle(SessionReady("a", epoch))) == ["a"]
        scheduler.check_integrity()


def test_segments_that_a_probe_overtook_are_lost_and_only_their_sessions_begin_again() -> None:
    scheduler, _ = scheduler_with("a", "b")
    assert scheduler.handle(SegmentsLost(0)) == []
    commands = scheduler.handle(SegmentsLost(1))
    assert OpenSession("a", 1) in commands
    assert scheduler.sessions["b"].epoch == 0
    scheduler.check_integrity()


def test_trouble_with_an_older_epoch_is_a_no_op() -> None:
    scheduler, _ = scheduler_with("a")
    assert scheduler.handle(SessionBroken("a", 0, "x"))[0] == OpenSession("a", 1)
    assert scheduler.handle(SessionBroken("a", 0, "x")) == []
    assert scheduler.handle(SegmentReturned(1, "a", 0, 0, 2, 8)) == []
    assert scheduler.sessions["a"].output == []


def test_what_always_fails_is_given_up() -> None:
    scheduler, _ = scheduler_with("a")
    for epoch in range(MOST_BARREN):
        assert OpenSession("a", epoch + 1) in scheduler.handle(SessionBroken("a", epoch, "no room"))
    (given_up,) = scheduler.handle(SessionBroken("a", MOST_BARREN, "no room"))
    assert isinstance(given_up, BreakSession)
    assert "no room" in given_up.reason
    assert isinstance(scheduler.handle(SessionStopped("a", "failed"))[0], FinishSession)


def test_a_last_segment_without_a_verdict_begins_the_session_again_and_not_for_ever() -> None:
    scheduler, _ = scheduler_with("a")
    for epoch in range(MOST_BARREN):
        ticket = scheduler.last_ticket
        assert OpenSession("a", epoch + 1) in scheduler.handle(SegmentReturned(ticket, "a", epoch, 0, None, None))
        scheduler.check_integrity()
        assert owners(scheduler.handle(SessionReady("a", epoch + 1))) == ["a"]
    last = SegmentReturned(scheduler.last_ticket, "a", MOST_BARREN, 0, None, None)
    assert [type(command) for command in scheduler.handle(last)] == [BreakSession]


def test_a_ticket_of_an_earlier_coordinator_is_not_taken_for_ones_own() -> None:
    scheduler, _ = scheduler_with("a")
    assert scheduler.handle(SegmentReturned(1, "elsewhere", 0, 0, 2, 8)) == []
    assert scheduler.in_flight == 1
    scheduler.check_integrity()


def test_a_resumed_session_goes_on_behind_what_the_client_has() -> None:
    session = Session(SessionRequested("s", (5, 6, 7), "flowspec", 10, frozenset(), resume=(8, 9)))
    assert (session.prompt, session.decree, session.remaining) == ((5, 6, 7, 8, 9), 4, 8)
    assert session.root_position == 4
    session.acknowledge(0)
    session.dispatch(session.prompt_chunk(64), 1)
    session.advance(4, 3)
    assert session.output == [8, 9, 3]
    session.restart()
    assert session.prompt == (5, 6, 7, 8, 9, 3)
