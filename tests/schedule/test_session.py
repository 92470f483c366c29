from __future__ import annotations

import pytest

from flowspec.errors import InvariantViolation
from flowspec.schedule.events import EmitTokens, FinishSession, SessionRequested
from flowspec.schedule.session import Session
from flowspec.wire.messages import NO_PARENT, DraftTokens


def prefilled(limit: int = 10, eos: frozenset[int] = frozenset()) -> Session:
    """Prompt 5 6 7, verdict 8; below the root, serial 3: 9 -> 1 -> 2, all of it sent."""
    session = Session(SessionRequested("s", (5, 6, 7), "flowspec", limit, eos))
    session.acknowledge(0)
    session.dispatch(session.prompt_chunk(64), 1)
    session.advance(2, 8)
    session.tree.merge(3, [(9, -0.1)])
    session.tree.merge(4, [(1, -0.1)])
    session.tree.merge(5, [(2, -0.1)])
    session.dispatch(session.tree.columns((3, 4, 5, 6)), 2)
    return session


def test_the_prompt_is_a_chain_that_goes_in_chunks() -> None:
    session = Session(SessionRequested("s", (5, 6, 7), "flowspec", 10, frozenset()))
    first = session.dispatch(session.prompt_chunk(2), 1)
    assert first.draft == DraftTokens((0, 1), (NO_PARENT, 0), (5, 6))
    assert (first.number, first.decree) == (0, 2)
    assert session.prefilling
    assert session.root_waits
    second = session.dispatch(session.prompt_chunk(2), 2)
    assert second.draft == DraftTokens((2,), (1,), (7,))
    assert not session.prefilling
    assert not session.root_waits


def test_a_verdict_emits_the_accepted_drafts_and_the_sampled_token() -> None:
    session = prefilled()
    moved, commands = session.advance(4, 99)
    assert moved is not None
    assert commands == [EmitTokens("s", (9, 99), (True, False))]
    assert session.output == [8, 9, 99]
    assert session.counters.pruned == 2


def test_a_sampled_token_that_was_under_way_counts_as_an_accepted_draft() -> None:
    assert prefilled().advance(4, 1)[1] == [EmitTokens("s", (9, 1), (True, True))]


@pytest.mark.parametrize(("frontier", "token"), [(2, 8), (None, None), (77, 1)])
def test_stale_empty_and_unknown_verdicts_change_nothing(frontier: int | None, token: int | None) -> None:
    session = prefilled()
    assert session.advance(frontier, token) == (None, [])
    assert session.roster_entry.frontier == 2


def test_nothing_is_emitted_after_eos_inside_a_verdict() -> None:
    session = prefilled(eos=frozenset({1}))
    emitted, finished = session.advance(6, 50)[1]
    assert emitted == EmitTokens("s", (9, 1), (True, True))
    assert isinstance(finished, FinishSession)
    assert (finished.reason, finished.accepted, finished.drafted) == ("eos", 2, 3)


def test_nothing_is_emitted_over_the_limit_inside_a_verdict() -> None:
    session = prefilled(limit=3)
    emitted, finished = session.advance(6, 50)[1]
    assert emitted == EmitTokens("s", (9, 1), (True, True))
    assert isinstance(finished, FinishSession)
    assert finished.reason == "length"
    assert session.advance(6, 50) == (None, [])


def test_a_session_stops_once() -> None:
    session = prefilled()
    assert len(session.stop("cancelled")) == 1
    assert session.stop("cancelled") == []


def test_a_verdict_on_a_token_that_was_never_sent_is_a_defect() -> None:
    session = prefilled()
    (unsent,) = session.tree.merge(6, [(3, -0.1)])
    with pytest.raises(InvariantViolation, match="never sent"):
        session.advance(unsent, 1)


def test_tokens_that_are_out_without_a_segment_in_flight_are_noticed() -> None:
    session = prefilled()
    session.land(1)
    session.land(2)
    with pytest.raises(InvariantViolation, match="no segment is in flight"):
        session.check_integrity()
