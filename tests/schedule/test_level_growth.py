"""Whole trees, level by level."""

from __future__ import annotations

from math import log

from flowspec.schedule.events import GrowTree, SessionRequested, TreeGrown
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.session import Session

Guess = tuple[int, float]


def growing(*, limit: int = 100, features: bool = False, drafter: bool = True) -> tuple[Session, LevelGrowth]:
    """Prompt 5 6 7; its verdict says 8, which is the root: serial 3, position 3. Two tokens of a level are expanded."""
    request = SessionRequested("s", (5, 6, 7), "chunked", limit, frozenset(), features=features, drafter=drafter)
    session = Session(request)
    session.acknowledge(0)
    growth = LevelGrowth(session, top_k=2, depth=3)
    session.dispatch(session.prompt_chunk(64), 1)
    moved, _ = session.advance(2, 8)
    assert moved is not None
    growth.follow(moved)
    growth.begin((3,), 3)
    return session, growth


def expanded(growth: LevelGrowth) -> tuple[int, ...]:
    asked = growth.step()
    assert all(isinstance(command, GrowTree) and command.width == 2 for command in asked)
    return asked[0].expand if asked else ()


def answer(growth: LevelGrowth, **guesses: list[Guess]) -> None:
    """`_4=[(9, 0.5)]`: the token 9 follows the one with serial 4 with probability 0.5."""
    children = tuple((int(name[1:]), tuple((t, log(p)) for t, p in found)) for name, found in guesses.items())
    growth.merge(TreeGrown("s", 0, children))


def test_the_best_of_each_level_are_expanded_and_the_best_of_all_are_kept_with_their_parents() -> None:
    session, growth = growing()
    assert expanded(growth) == (3,)
    assert growth.step() == []
    answer(growth, _3=[(10, 0.5), (11, 0.3), (12, 0.2)])  # serials 4, 5, 6
    assert expanded(growth) == (4, 5)
    answer(growth, _4=[(20, 0.9), (21, 0.1)], _5=[(22, 0.8)])  # 7, 8 and 9
    assert expanded(growth) == (7, 9)
    answer(growth, _7=[(30, 0.2)], _9=[])  # 10
    assert growth.busy
    assert growth.step() == []
    assert not growth.busy
    assert growth.best(3) == [3, 4, 7]
    assert growth.best() == [3, 4, 7, 5, 9, 6, 10, 8]
    assert growth.deepest(2) == [10]
    session.check_integrity()


def test_what_the_drafter_cannot_say_better_is_not_asked_again() -> None:
    _, growth = growing()
    expanded(growth)
    answer(growth, _3=[(10, 0.5)])
    growth.begin((3,), 2)
    assert expanded(growth) == (4,)
    answer(growth, _4=[])
    assert growth.step() == []
    assert growth.best() == [3, 4]


def test_with_features_that_came_meanwhile_the_level_is_asked_again() -> None:
    session, growth = growing(features=True)
    session.read_features(0, 2)
    assert expanded(growth) == (3,)
    answer(growth, _3=[(10, 0.5)])
    session.read_features(0, 3)
    assert expanded(growth) == (3,)
    answer(growth, _3=[(11, 0.9), (10, 0.1)])
    assert expanded(growth) == (4, 5)


def test_no_level_is_drafted_that_could_not_be_emitted() -> None:
    session, growth = growing(limit=3)
    assert session.remaining == 2
    assert expanded(growth) == (3,)
    answer(growth, _3=[(10, 0.5)])
    assert growth.step() == []
    assert growth.best() == [3, 4]
    _, last = growing(limit=2)
    assert last.step() == []
    assert last.best() == [3]


def test_a_draft_goes_on_with_what_is_left_of_it_after_a_verdict() -> None:
    session, growth = growing()
    expanded(growth)
    answer(growth, _3=[(10, 0.5), (11, 0.3)])
    assert expanded(growth) == (4, 5)
    session.dispatch(session.tree.columns((3, 4)), 2)
    moved, _ = session.advance(3, 10)
    assert moved is not None
    growth.follow(moved)
    answer(growth, _4=[(20, 0.9)], _5=[(21, 0.9)])
    assert expanded(growth) == (6,)
    answer(growth, _6=[])
    assert growth.step() == []
    assert growth.best() == [4, 6]


def test_without_a_drafter_a_tree_is_its_root() -> None:
    _, growth = growing(drafter=False)
    assert growth.step() == []
    assert not growth.busy
    assert growth.best(80) == [3]
    _, lost = growing()
    expanded(lost)
    lost.lost, lost.out = True, None
    assert lost.step() == []
    assert lost.best(80) == [3]
