"""The ngram drafter finds what followed the same tokens before, also behind drafts that nobody accepted yet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flowspec.drafting.ngram import Lookup, NgramDrafter
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import DraftTokens
from flowspec.wire.parameters import SamplingParameters


def chain(tokens: Sequence[int], first: int = 0) -> DraftTokens:
    serials = tuple(range(first, first + len(tokens)))
    return DraftTokens(serials, tuple(serial - 1 for serial in serials), tuple(tokens))


def opened(tokens: Sequence[int]) -> tuple[NgramDrafter, dict[int, list[tuple[int, float]]]]:
    """A drafter that has read a prompt, and its answer for the last token."""
    drafter = NgramDrafter()
    drafter.open("s", SamplingParameters(), 1000)
    last = len(tokens) - 1
    return drafter, answer(drafter, GrowTree("s", 0, (last,), chain(tokens), last))


def answer(drafter: NgramDrafter, request: GrowTree, width: int = 4) -> dict[int, list[tuple[int, float]]]:
    return {serial: list(children) for serial, children in drafter.grow(request, width)}


def test_a_repeat_is_found_and_longer_matches_are_surer() -> None:
    _, short = opened([1, 2, 3, 9, 8, 1])
    _, long = opened([1, 2, 3, 4, 5, 1, 2, 3, 4])
    assert short[5][0][0] == 2
    assert long[8][0][0] == 5
    assert long[8][0][1] > short[5][0][1]
    assert math.isclose(math.exp(short[5][0][1]), 1 / 4)


def test_nothing_seen_before_gives_no_children() -> None:
    _, children = opened([1, 2, 3, 4])
    assert children == {3: []}


def test_several_followers_come_by_their_counts() -> None:
    _, children = opened([1, 7, 2, 1, 8, 3, 1, 7, 4, 1])
    tokens = [token for token, _ in children[9]]
    assert tokens == [7, 8]
    assert sum(math.exp(score) for _, score in children[9]) < 1


def test_a_path_of_drafts_is_matched_too() -> None:
    drafter, _ = opened([1, 2, 3, 4, 5, 6, 1])
    children = answer(drafter, GrowTree("s", 0, (7, 8), DraftTokens((7, 8), (6, 7), (2, 3)), 6))
    assert children[7][0][0] == 3
    assert children[8][0][0] == 4


def test_accepted_drafts_are_indexed_and_dead_ones_forgotten() -> None:
    drafter, _ = opened([5, 1])
    answer(drafter, GrowTree("s", 0, (2, 3, 4), DraftTokens((2, 3, 4), (1, 1, 2), (7, 8, 9)), 1))
    # 2 (token 7) was accepted, then 4 (token 9) follows; 3 is dead. A new 1 comes behind.
    drafter.grow(GrowTree("s", 0, (5,), DraftTokens((5,), (4,), (1,)), 1, frontier=2, token=9), 4)
    children = answer(drafter, GrowTree("s", 0, (6, 3), DraftTokens((6,), (5,), (7,)), 1, frontier=5, token=7))
    assert children == {6: [(9, children[6][0][1])]}
    assert answer(drafter, GrowTree("s", 0, (5,), DraftTokens(), 1, frontier=5, token=7))[5][0][0] == 7


def test_a_new_epoch_begins_with_nothing() -> None:
    drafter, first = opened([1, 2, 1])
    assert first[2]
    assert answer(drafter, GrowTree("s", 1, (0,), chain([1]), 0)) == {0: []}


def test_a_closed_session_gives_nothing() -> None:
    drafter, _ = opened([1, 2, 1])
    drafter.close("s")
    drafter.close("s")
    assert drafter.grow(GrowTree("s", 0, (2,), DraftTokens(), 2), 4) == ()


@given(st.data())
def test_a_tree_accepted_step_by_step_leaves_the_index_of_its_text(data: st.DataObject) -> None:
    lookup = Lookup(0)
    lookup.take(chain([1, 2]), 1)
    text, serial, following = [1, 2], 2, None
    for _ in range(data.draw(st.integers(1, 6))):
        fresh: list[tuple[int, int, int]] = []
        parents = [lookup.last] if following is None else []
        if following is not None:
            known = [s for s, (parent, _) in lookup.draft.items() if parent == lookup.last]
            if not known:
                fresh.append((serial, lookup.last, following))
                serial += 1
            parents = [*lookup.draft, *(row[0] for row in fresh)]
        for _ in range(data.draw(st.integers(0, 4))):
            fresh.append((serial, data.draw(st.sampled_from(parents)), data.draw(st.integers(0, 3)) + serial * 4))
            parents.append(serial)
            serial += 1
        lookup.take(DraftTokens(*(tuple(column) for column in zip(*fresh, strict=True))) if fresh else DraftTokens(), 1)
        frontier = data.draw(st.sampled_from(sorted(lookup.draft))) if lookup.draft else lookup.last
        text += lookup.path(frontier)
        following = data.draw(st.integers(0, 3))
        children = [token for parent, token in lookup.draft.values() if parent == frontier]
        if children and data.draw(st.booleans()):
            following = data.draw(st.sampled_from(children))
        lookup.accept(frontier, following)
        assert lookup.index.tokens == text
        assert lookup.last == frontier
        assert all(parent == frontier or parent in lookup.draft for parent, _ in lookup.draft.values())
