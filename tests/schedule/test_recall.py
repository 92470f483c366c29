"""What the text said before is copied into the tree, as far as copies came true until now."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowspec.schedule.recall import Recall, RecallSettings
from flowspec.schedule.tree import DraftTree

RUN = list(range(20, 32))
FAR = 1000


def after(text: list[int], settings: RecallSettings | None = None) -> tuple[Recall, DraftTree]:
    """What recalls that text, and the tree of its last token."""
    recall = Recall(settings)
    recall.take(text)
    return recall, DraftTree(len(text) - 1, len(text) - 2, text[-1])


def tokens_of(tree: DraftTree) -> list[int]:
    return [token.token for token in tree][1:]


def test_a_run_that_came_before_is_copied_as_a_chain() -> None:
    recall, tree = after([*RUN, 1, *RUN[:4]])
    recall.extend(tree, FAR)
    copied = list(tree)
    assert tokens_of(tree) == [*RUN[4:], 1, *RUN[:3]]
    assert [token.parent for token in copied[1:]] == [token.serial for token in copied[:-1]]
    assert all(0.5 <= exp(token.log_probability) < 1 for token in copied[1:])
    tree.check_integrity()


def test_a_text_without_repetitions_says_nothing() -> None:
    recall, tree = after(list(range(50)))
    recall.extend(tree, FAR)
    assert len(tree) == 1


def test_a_token_that_was_seen_once_in_a_short_context_is_too_doubtful() -> None:
    recall, tree = after([1, 2, 3, 4, 2])
    recall.extend(tree, FAR)
    assert len(tree) == 1


@pytest.mark.parametrize(("limit", "copied"), [(1, 0), (2, 1), (4, 3)])
def test_nothing_is_copied_that_could_not_be_emitted(limit: int, copied: int) -> None:
    recall, tree = after([*RUN, 1, *RUN[:4]])
    recall.extend(tree, limit)
    assert len(tree) - 1 == copied


def test_guesses_of_the_drafter_are_continued_behind_what_they_say() -> None:
    recall, tree = after([*RUN, 2])
    for offset, token in enumerate(RUN[:3]):
        tree.merge(tree.root + offset, [(token, -0.1)])
    recall.extend(tree, FAR)
    assert tokens_of(tree)[: len(RUN)] == RUN


def test_nothing_is_looked_up_twice_and_what_the_drafter_answered_is_left_alone() -> None:
    recall, tree = after([*RUN, 1, *RUN[:4]], RecallSettings(length=2))
    recall.extend(tree, FAR)
    assert len(tree) == 3
    tree[tree.root + 2].promised = 0.9
    recall.extend(tree, FAR)
    assert len(tree) == 3


def test_copies_that_do_not_come_true_are_believed_less_and_less_and_then_not_made() -> None:
    recall, tree = after([*RUN, 1, *RUN[:4]])
    for rounds in range(1, 40):
        recall.extend(tree, FAR)
        if len(tree) == 1:
            break
        recall.judge(tree.reroot(tree.root, 99 + rounds))
        assert recall.trust < 1.0
        tree = DraftTree(tree.root + 1, tree.root, RUN[3])
    assert 1 < rounds < 20
    # What is found is judged all the same, so copies come back when they would have come true.
    for _ in range(30):
        recall.judge(tree.reroot(tree.root, RUN[4]))
        tree = DraftTree(tree.root + 1, tree.root, RUN[3])
        recall.extend(tree, FAR)
        if len(tree) > 1:
            break
    assert len(tree) > 1


def test_copies_that_come_true_are_believed_as_they_are() -> None:
    recall, tree = after([*RUN, 1, *RUN[:4]])
    recall.extend(tree, FAR)
    recall.judge(tree.reroot(tree.root + 3, RUN[7]))
    assert recall.trust == 1.0


@given(text=st.lists(st.integers(0, 2), min_size=2, max_size=80), data=st.data())
def test_whatever_the_text_the_tree_stays_sound_and_within_bounds(text: list[int], data: st.DataObject) -> None:
    settings = RecallSettings(starts=2, length=5)
    recall, tree = after(text, settings)
    for _ in range(data.draw(st.integers(1, 6))):
        before, deepest = len(tree), max(token.depth for token in tree.ranking())
        recall.extend(tree, FAR)
        tree.check_integrity()
        assert len(tree) - before <= settings.starts * settings.length
        assert max(token.depth for token in tree.ranking()) <= deepest + settings.length
        assert all(exp(token.log_probability) >= settings.chance - 1e-9 for token in tree)
