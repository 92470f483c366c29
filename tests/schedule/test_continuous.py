from __future__ import annotations

from dataclasses import replace
from math import log
from typing import TypeVar

import pytest

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.continuous import ContinuousSettings
from flowspec.schedule.events import (
    Command,
    DrafterLost,
    EmitTokens,
    GrowTree,
    PipeProfile,
    SegmentReturned,
    SegmentTaken,
    SendSegment,
    SessionReady,
    SessionRequested,
    TreeGrown,
)

AnyCommand = TypeVar("AnyCommand", bound=Command)
CURVE = ((1, 0.06), (16, 0.069))
PIPE = PipeProfile((CURVE,) * 4)
REQUEST = SessionRequested("s", (5, 6, 7), "flowspec", 100, frozenset())
HASTY = ContinuousSettings(impatience=1e9)
"""Waits for no step of the drafter."""


def only(commands: list[Command], kind: type[AnyCommand]) -> list[AnyCommand]:
    return [command for command in commands if isinstance(command, kind)]


def started(request: SessionRequested = REQUEST, settings: ContinuousSettings | None = None) -> Scheduler:
    """Prompt sent as ticket 1 (serials 0 to 2), the drafter busy with it."""
    scheduler = Scheduler(PIPE, settings)
    scheduler.handle(request)
    scheduler.handle(SessionReady("s", 0))
    return scheduler


def returned(ticket: int, frontier: int | None, token: int | None) -> SegmentReturned:
    return SegmentReturned(ticket, "s", 0, ticket - 1, frontier, token)


def grown(*children: tuple[int, tuple[tuple[int, float], ...]], seconds: float = 0.001) -> TreeGrown:
    return TreeGrown("s", 0, children, seconds)


def test_the_drafter_gets_the_prompt_at_once_and_expands_its_last_token() -> None:
    scheduler = Scheduler(PIPE)
    scheduler.handle(REQUEST)
    (grow,) = only(scheduler.handle(SessionReady("s", 0)), GrowTree)
    assert grow.expand == (2,)
    assert grow.draft.serials == (0, 1, 2)
    assert (grow.decree, grow.frontier, grow.token) == (2, None, None)


def test_drafts_follow_the_prompt_before_any_verdict() -> None:
    scheduler = started()
    scheduler.handle(SegmentTaken(1))
    scheduler.handle(grown((2, ((8, log(0.9)),))))
    (sent,) = only(scheduler.handle(grown((3, ()))), SendSegment)
    assert sent.draft.serials == (3,)


def test_a_verdict_emits_and_asks_the_drafter_in_one_go() -> None:
    scheduler = started()
    scheduler.handle(grown((2, ((8, log(0.9)),))))
    scheduler.handle(grown())
    commands = scheduler.handle(returned(1, 2, 42))
    assert only(commands, EmitTokens) == [EmitTokens("s", (42,), (False,))]
    (grow,) = only(commands, GrowTree)
    assert (grow.frontier, grow.token) == (2, 42)
    assert grow.draft.tokens == (42,)
    assert grow.expand == grow.draft.serials


def test_accepted_leaves_are_given_to_the_drafter_before_the_new_root() -> None:
    scheduler = started(replace(REQUEST, prompt=(5,)))
    scheduler.handle(SegmentTaken(1))
    scheduler.handle(grown((0, ((8, log(0.9)),))))  # serial 1, asked for next
    scheduler.handle(grown((1, ((9, log(0.9)),))))  # serial 2, asked for next and sent with 1
    scheduler.handle(grown())
    commands = scheduler.handle(returned(1, 0, 8)) + scheduler.handle(returned(2, 2, 50))
    (grow,) = only(commands, GrowTree)
    assert (grow.frontier, grow.token) == (2, 50)
    assert grow.draft.parents == (2,)


def test_at_most_one_growth_is_out() -> None:
    scheduler = started()
    assert only(scheduler.handle(returned(1, 2, 42)), GrowTree) == []


def test_an_answer_for_pruned_parents_is_dropped() -> None:
    scheduler = started()
    scheduler.handle(grown((2, ((8, log(0.9)),))))  # now expands serial 3
    scheduler.handle(returned(1, 2, 42))
    scheduler.handle(grown((3, ((1, log(0.9)),))))
    assert len(scheduler.sessions["s"].tree) == 1


def test_a_certain_token_waits_one_step_for_its_children_but_no_longer_than_pays() -> None:
    scheduler = started()
    scheduler.handle(grown((2, ())))
    assert scheduler.sessions["s"].flights
    commands = scheduler.handle(returned(1, 2, 42))
    assert only(commands, SendSegment) == []
    (sent,) = only(scheduler.handle(grown((3, ((1, log(0.05)),)))), SendSegment)
    assert sent.draft.serials == (3, 4)


def test_a_certain_token_does_not_wait_for_a_slow_drafter() -> None:
    scheduler = started()
    scheduler.handle(grown((2, ()), seconds=1.0))
    (sent,) = only(scheduler.handle(returned(1, 2, 42)), SendSegment)
    assert sent.draft.tokens == (42,)


def test_a_certain_token_does_not_wait_for_a_drafter_that_is_lost() -> None:
    scheduler = started()
    scheduler.handle(grown((2, ())))
    scheduler.handle(returned(1, 2, 42))
    (sent,) = only(scheduler.handle(DrafterLost("s")), SendSegment)
    assert sent.draft.tokens == (42,)


@pytest.mark.parametrize(("curve", "most"), [(((1, 0.06), (16, 0.06)), 20), (((1, 0.01), (16, 0.16)), 4)])
def test_segments_are_smaller_where_more_tokens_cost_more(curve: tuple[tuple[int, float], ...], most: int) -> None:
    scheduler = Scheduler(PipeProfile((curve,) * 4))
    scheduler.handle(REQUEST)
    scheduler.handle(SessionReady("s", 0))
    scheduler.handle(grown((2, ()), seconds=1.0))
    scheduler.handle(SegmentTaken(1))
    scheduler.sessions["s"].tree.merge(2, [(token, log(0.9) - 0.3 * token) for token in range(20)])
    (sent,) = only(scheduler.handle(SegmentTaken(1)), SendSegment)
    assert 1 <= len(sent.draft) <= most
    # Where more tokens cost nothing, all that wait go.
    assert (len(sent.draft) == 20) == (most == 20)


@pytest.mark.parametrize(("cores", "most"), [(2, 24), (16, 40)])
def test_where_nodes_share_cores_segments_are_smaller(cores: int, most: int) -> None:
    curve = ((1, 0.06), (16, 0.06))
    scheduler = Scheduler(PipeProfile((curve,) * 4, (), ((cores, (0, 1, 2, 3), (curve,) * 4),), True))
    assert scheduler.pipe.contended == (cores == 2)
    scheduler.handle(REQUEST)
    scheduler.handle(SessionReady("s", 0))
    (ticket,) = scheduler.sessions["s"].flights
    end = 2
    for token in range(40):
        (end,) = scheduler.sessions["s"].tree.merge(end, [(token, log(0.99))])
    # More tokens cost nothing here, and all are likely: it is the limit that decides.
    (segment, *_) = only(scheduler.handle(returned(ticket, 2, 0)), SendSegment)
    assert len(segment.draft) == most


def test_guesses_that_are_hardly_worth_a_segment_are_not_sent() -> None:
    scheduler = started()
    scheduler.handle(SegmentTaken(1))
    scheduler.handle(grown((2, ((8, log(0.04)),)), seconds=1.0))
    assert list(scheduler.sessions["s"].flights) == [1]


def test_live_tokens_in_flight_never_exceed_the_tree_setting() -> None:
    scheduler = started(settings=ContinuousSettings(tree=6, segment=4))
    scheduler.handle(grown((2, ()), seconds=1.0))
    scheduler.sessions["s"].tree.merge(2, [(token, log(0.1)) for token in range(9)])
    for ticket in range(1, 6):
        scheduler.handle(SegmentTaken(ticket))
    assert scheduler.sessions["s"].tree.sent == scheduler.settings.tree == 6


def test_what_could_only_be_emitted_over_the_limit_is_neither_sent_nor_expanded() -> None:
    scheduler = started(replace(REQUEST, max_new_tokens=2))
    scheduler.handle(SegmentTaken(1))
    commands = scheduler.handle(grown((2, ((8, log(0.9)),))))
    assert only(commands, GrowTree) == []
    (sent,) = only(commands, SendSegment)
    assert sent.draft.tokens == (8,)


def test_where_text_repeats_itself_copies_leave_without_waiting_for_the_drafter() -> None:
    run = tuple(range(20, 32))
    request = replace(REQUEST, prompt=(*run, 1, *run[:4]), recalls=True)
    scheduler = started(request)
    (first,) = only(scheduler.handle(SegmentTaken(1)), SendSegment)
    assert first.draft.tokens[:4] == run[4:8]
    last = first.draft.serials[-1]
    scheduler.handle(returned(1, None, None))
    commands = scheduler.handle(returned(2, last, 99))
    assert [token for command in only(commands, EmitTokens) for token in command.tokens] == [*first.draft.tokens, 99]
    scheduler.check_integrity()


def test_without_a_drafter_that_looks_text_up_nothing_is_copied() -> None:
    run = tuple(range(20, 32))
    scheduler = started(replace(REQUEST, prompt=(*run, 1, *run[:4])))
    assert not only(scheduler.handle(SegmentTaken(1)), SendSegment)


def test_news_that_stage_one_has_begun_is_held_until_the_next_segment_would_just_arrive() -> None:
    scheduler = started(settings=HASTY)
    assert scheduler.hold(99) == 0.0  # no such segment is under way
    scheduler.handle(SegmentTaken(1))
    scheduler.handle(grown((2, ((8, -0.1),))))
    (sent,) = only(scheduler.handle(returned(1, 2, 9)), SendSegment)
    assert scheduler.hold(sent.ticket) == pytest.approx(scheduler.pipe.slack(len(sent.draft)))
    assert scheduler.hold(sent.ticket) > 0.0


def test_nothing_is_held_while_a_prompt_is_on_its_way_or_nodes_share_cores() -> None:
    scheduler = Scheduler(PIPE)
    scheduler.handle(SessionRequested("s", tuple(range(900)), "flowspec", 100, frozenset()))
    (sent,) = only(scheduler.handle(SessionReady("s", 0)), SendSegment)
    assert scheduler.hold(sent.ticket) == 0.0
    scheduler = Scheduler(PipeProfile((CURVE,) * 4, (), ((1, (0, 1, 2, 3), (CURVE,) * 4),), True))
    scheduler.handle(REQUEST)
    (sent,) = only(scheduler.handle(SessionReady("s", 0)), SendSegment)
    assert scheduler.hold(sent.ticket) == 0.0


def test_what_has_died_at_stage_one_is_not_waited_for() -> None:
    scheduler = started(settings=HASTY)
    scheduler.handle(SegmentTaken(1))
    (guessed,) = only(scheduler.handle(grown((2, ((8, -0.1),)))), SendSegment)
    assert scheduler.hold(guessed.ticket) == pytest.approx(scheduler.pipe.slack(len(guessed.draft)))
    scheduler.handle(returned(1, 2, 9))
    assert guessed.draft.serials[0] not in scheduler.sessions["s"].tree
    assert scheduler.hold(guessed.ticket) == 0.0


@pytest.mark.parametrize(("sessions", "most"), [(1, 3), (2, 4)])
def test_drafts_of_one_session_leave_the_pipe_some_air_and_those_of_several_fill_it(sessions: int, most: int) -> None:
    scheduler = Scheduler(PIPE, replace(HASTY, segment=1))
    names = ("s", "t")[:sessions]
    for name in names:
        scheduler.handle(replace(REQUEST, session=name))
        scheduler.handle(SessionReady(name, 0))
    scheduler.handle(SegmentTaken(1))
    for name in names:
        children = tuple((token, log(0.15)) for token in range(20, 26))
        scheduler.handle(TreeGrown(name, 0, ((2, children),), 0.001))
    for _ in range(10):
        scheduler.handle(SegmentTaken(scheduler.last_ticket))
    assert scheduler.in_flight == most
    scheduler.check_integrity()
