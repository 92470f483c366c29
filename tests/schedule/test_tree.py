from __future__ import annotations

import math
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import InvariantViolation
from flowspec.schedule.tree import DraftTree


def small() -> DraftTree:
    """10 -> (11: token 1, 12: token 2); 11 -> (13: token 3)."""
    tree = DraftTree(10, 9, 7)
    assert tree.merge(10, [(1, -0.1), (2, -2.0)]) == (11, 12)
    assert tree.merge(11, [(3, -0.2)]) == (13,)
    return tree


def test_serials_increase_from_the_root() -> None:
    assert [token.serial for token in small()] == [10, 11, 12, 13]


def test_a_child_that_is_there_keeps_its_identity_and_takes_the_newer_score() -> None:
    tree = small()
    tree.mark_sent((10, 11))
    assert tree.merge(10, [(1, -0.5), (9, -1.0)]) == (14,)
    assert tree[11].sent
    assert tree[11].log_probability == -0.5


def test_children_of_a_pruned_parent_are_dropped() -> None:
    tree = small()
    assert tree.merge(99, [(1, -0.1)]) == ()
    assert len(tree) == 4


def test_the_best_come_first_and_parents_before_children() -> None:
    ranking = small().ranking()
    assert [token.serial for token in ranking] == [10, 11, 13, 12]
    assert [token.depth for token in ranking] == [0, 1, 2, 1]
    assert ranking[2].score == pytest.approx(-0.3)


def test_reroot_follows_the_child_that_carries_the_token() -> None:
    tree = small()
    moved = tree.reroot(10, 1)
    assert [token.serial for token in moved.passed] == [10]
    assert moved.accepted == ()
    assert (moved.root.serial, moved.created) == (11, False)
    assert [token.serial for token in moved.dropped] == [12]
    assert tree.root == 11
    assert tree.ranking()[0].score == 0.0


def test_reroot_creates_a_token_that_nobody_guessed() -> None:
    tree = small()
    moved = tree.reroot(11, 42)
    assert [token.serial for token in moved.accepted] == [11]
    assert (moved.root.serial, moved.root.parent, moved.created) == (14, 11, True)
    assert {token.serial for token in moved.dropped} == {12, 13}
    assert len(tree) == 1


def test_trimming_spares_what_was_sent_and_takes_leaves_first() -> None:
    tree = small()
    tree.mark_sent((10, 11, 12))
    assert tree.trim(1) == 1
    assert 13 not in tree
    assert 12 in tree
    tree.check_integrity()


def test_trimming_spares_what_the_drafter_has_and_a_second_guess_is_the_same_token() -> None:
    tree = DraftTree(0, -1, 1)
    (had,) = tree.merge(0, [(222, -3.0)])
    tree[0].given = tree[had].given = True
    tree.merge(0, [(300 + place, -0.5) for place in range(5)])
    assert tree.trim(3) == 4
    assert tree.merge(0, [(222, -0.1)], complete=True) == ()
    assert tree[0].children[222] == had
    assert tree.ranking()[1].serial == had


def test_a_complete_answer_joins_what_is_above_the_bar_beside_children_that_are_there() -> None:
    tree = DraftTree(0, -1, 1)
    (above,) = tree.merge(0, [(7, -2.0)])
    tree.merge(above, [(8, -0.7)])
    answer = [(8, -0.7), (9, -1.0), (10, -2.0), (11, -9.0)]
    joined = tree.merge(above, answer, complete=True, least=-5.0)
    assert [tree[serial].token for serial in joined] == [9, 10], "11 would have a score of -11"


def test_missing_tokens_are_given_parents_first_and_once() -> None:
    tree = small()
    assert [token.serial for token in tree.missing((13, 12))] == [10, 11, 12, 13]
    for token in tree.missing((13,)):
        token.given = True
    assert [token.serial for token in tree.missing((13, 12))] == [12]


def test_a_damaged_tree_is_noticed() -> None:
    tree = small()
    tree[13].sent = True
    with pytest.raises(InvariantViolation, match="sent before its parent"):
        tree.check_integrity()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_tree_sound_and_every_prefix_of_the_waiting_sendable(seed: int) -> None:
    dice = Random(seed)
    tree = DraftTree(0, -1, 0)
    for _ in range(60):
        serials = [token.serial for token in tree]
        match dice.randrange(4):
            case 0 | 1:
                count = dice.randrange(4)
                tree.merge(dice.choice(serials), [(dice.randrange(6), -dice.random()) for _ in range(count)])
            case 2:
                ready = tree.waiting(10_000, dice.randrange(1, 9))
                known = {token.serial for token in tree if token.sent} | {tree[tree.root].parent}
                for token in ready:
                    assert tree[token.serial].parent in known
                    known.add(token.serial)
                tree.mark_sent(token.serial for token in ready)
            case 3:
                sent = [token.serial for token in tree if token.sent]
                if sent:
                    tree.reroot(dice.choice(sent), dice.randrange(6))
                tree.trim(dice.randrange(1, 30))
        tree.check_integrity()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_what_is_left_out_below_the_bar_is_what_trimming_would_drop(seed: int) -> None:
    most = 12
    trees = []
    for cheap in (False, True):
        dice, tree, new = Random(seed), DraftTree(0, -1, 0), count(1)
        for _ in range(8):
            least = tree.bar(most) if cheap else -math.inf
            ranked = [token.serial for token in tree.ranking()]
            for serial in dice.sample(ranked, min(3, len(ranked))):
                tree.merge(serial, [(next(new), -3 * dice.random()) for _ in range(4)], least=least)
            tree.trim(most)
            tree.check_integrity()
        trees.append([(token.token, token.score) for token in tree.ranking()])
    assert trees[0] == trees[1]
