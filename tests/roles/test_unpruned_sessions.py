"""Sessions that do not prune: a verdict that is heard drops no row, and holds no feature back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.model.block import LayerBlock
from flowspec.roles.stage_session import StageSession
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.wire.messages import DraftTokens, Open, RosterEntry, Segment
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint
from tests.model.running import chain

PROMPT = [5, 9, 33, 40, 7, 12]
BRANCHES = DraftTokens((6, 7, 8), (5, 5, 7), (30, 50, 51))
"""Two children of the prompt's end, and one of the second."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("unpruned") / "llama", layers=4)


def opened(prunes: bool, taps: tuple[int, ...] = ()) -> Open:
    return Open("s", 0, 100, SamplingParameters(), taps, prunes=prunes)


def segment(number: int, draft: DraftTokens, verdict: tuple[int, int] | None = None) -> Segment:
    frontier, token = verdict or (None, None)
    roster = (RosterEntry("other", 0, 90, 1), RosterEntry("s", 0, frontier, token))
    return Segment("s", 0, number, number + 1, len(PROMPT) - 1, draft, roster)


@pytest.mark.parametrize("prunes", [True, False])
def test_what_is_in_flight_stays_until_a_segment_of_the_session_says_otherwise(model: Path, prunes: bool) -> None:
    collected: list[tuple[int, int]] = []
    block = LayerBlock.load(model, 0, 2, dtype="float64")
    session = StageSession(
        opened(prunes, (0, 1)), block, EmulatedDevice(), lambda first, rows: collected.append((first, len(rows[0])))
    )
    session.step(segment(0, chain(PROMPT)), None)
    session.step(segment(1, BRANCHES), None)
    assert session.note(7, 51)
    assert not session.note(7, 51)
    session.collect()
    assert collected == [(0, 6), (6, 1)]
    # A segment that left before the verdict was known: 9 hangs on the branch that it contradicts.
    late = session.step(segment(2, DraftTokens((9,), (6,), (31,)), (5, 50) if prunes else None), None)
    assert len(late.draft) == (0 if prunes else 1)
    assert session.rows == (8 if prunes else 10)
    session.step(segment(3, DraftTokens((10,), (8,), (52,)), (7, 51)), None)
    assert session.rows == 9
    assert collected == [(0, 6), (6, 1)]
    session.free()


def test_the_tail_samples_on_above_rows_that_it_keeps(model: Path) -> None:
    verdicts = {}
    for prunes in (True, False):
        block = LayerBlock.load(model, 0, 4, dtype="float64")
        session = StageSession(opened(prunes), block, EmulatedDevice())
        first = session.step(segment(0, chain(PROMPT)), None)
        assert first.verdict is not None
        token = first.verdict[1]
        draft = DraftTokens((6, 7), (5, 5), (token, (token + 1) % 300))
        second = session.step(segment(1, draft, first.verdict if prunes else None), None)
        assert second.verdict is not None
        assert second.moved
        follower = DraftTokens((8, 9), (6, 7), (second.verdict[1], 3))
        third = session.step(segment(2, follower, second.verdict if prunes else None), None)
        assert third.computed == (1 if prunes else 2)
        verdicts[prunes] = (first.verdict, second.verdict, third.verdict)
        assert session.rows == len(PROMPT) + (2 if prunes else 4)
        session.free()
    assert verdicts[True] == verdicts[False]
    assert verdicts[True][2] is not None
    assert verdicts[True][2][0] == 8


def test_hidden_states_of_a_dead_branch_are_computed_all_the_same(model: Path) -> None:
    def outputs(prunes: bool) -> torch.Tensor | None:
        session = StageSession(opened(prunes), LayerBlock.load(model, 0, 2, dtype="float64"), EmulatedDevice())
        session.step(segment(0, chain(PROMPT)), None)
        session.note(5, 50)
        hidden = session.step(segment(1, BRANCHES), None).hidden
        session.free()
        return hidden

    pruned, whole = outputs(True), outputs(False)
    assert pruned is not None
    assert whole is not None
    assert (len(pruned), len(whole)) == (2, 3)
    torch.testing.assert_close(pruned, whole[1:], rtol=1e-12, atol=1e-12)
