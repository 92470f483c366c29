"""What one session asks its drafter, and what it makes of the answers."""

from __future__ import annotations

from math import exp, log

import pytest

from flowspec.schedule.events import GrowTree, SessionRequested, StopGrowth, TreeGrown
from flowspec.schedule.growth import Growth, GrowthSettings
from flowspec.schedule.session import Session

Answer = tuple[int, tuple[tuple[int, float], ...]]


def growing(*, features: bool = True, settings: GrowthSettings | None = None) -> tuple[Session, Growth]:
    """Prompt 5 6 7; its verdict says 8, which is the root: serial 3, position 3."""
    session = Session(SessionRequested("s", (5, 6, 7), "flowspec", 100, frozenset(), features=features))
    session.acknowledge(0)
    growth = Growth(session, settings or GrowthSettings())
    session.dispatch(session.prompt_chunk(64), 1)
    verdict(session, growth, 2, 8)
    return session, growth


def verdict(session: Session, growth: Growth, frontier: int, token: int) -> None:
    moved, _ = session.advance(frontier, token)
    assert moved is not None
    growth.follow(moved)


def asked(growth: Growth) -> GrowTree:
    (command,) = growth.ask(48)
    return command


def answer(growth: Growth, *children: Answer, seconds: float = 0.001) -> None:
    growth.merge(TreeGrown("s", 0, children, seconds))


def scores(*chances: float, first: int = 11) -> tuple[tuple[int, float], ...]:
    return tuple((first + index, log(chance)) for index, chance in enumerate(chances))


def chances(session: Session, parent: int) -> dict[int, float]:
    tree = session.tree
    return {token: exp(tree[serial].log_probability) for token, serial in tree[parent].children.items()}


def settled(session: Session, growth: Growth, features: int) -> None:
    """The drafter has answered for the root (its children 11 and 12), and for them that nothing follows."""
    session.read_features(0, features)
    assert asked(growth).expand == (3,)
    answer(growth, (3, scores(0.6, 0.2)))
    assert asked(growth).expand == (4, 5)
    answer(growth)


def test_a_root_is_at_the_position_behind_prompt_and_output() -> None:
    session, growth = growing()
    assert session.root_position == 3
    session.dispatch(session.tree.columns((3,)), 2)
    verdict(session, growth, 3, 50)
    assert session.root_position == 4


def test_the_root_is_expanded_again_when_the_features_before_it_come() -> None:
    session, growth = growing()
    settled(session, growth, features=2)
    assert growth.ask(48) == []
    session.read_features(0, 3)
    again = asked(growth)
    assert 3 in again.expand
    assert again.draft.serials == ()


def test_features_that_came_before_the_answer_were_in_it() -> None:
    session, growth = growing()
    assert asked(growth).expand == (3,)
    session.read_features(0, 3)
    answer(growth, (3, scores(0.6)))
    assert asked(growth).expand == (4,)
    answer(growth)
    assert growth.ask(48) == []


def test_features_of_drafts_are_of_no_use_before_they_are_accepted() -> None:
    session, growth = growing()
    settled(session, growth, features=3)
    session.read_features(0, 9)
    assert growth.ask(48) == []


def test_a_token_that_became_the_root_is_expanded_again_when_its_features_come() -> None:
    session, growth = growing()
    settled(session, growth, features=3)
    session.dispatch(session.tree.columns((3,)), 2)
    verdict(session, growth, 3, 11)
    assert session.tree.root == 4
    assert growth.ask(48) == []
    session.read_features(0, 4)
    assert asked(growth).expand == (4,)


def test_a_root_without_an_answer_is_asked_again_when_all_features_before_it_are_there() -> None:
    session, growth = growing()
    assert asked(growth).expand == (3,)
    hit = growth.hit
    answer(growth)
    assert growth.hit == hit
    for features in range(3):
        session.read_features(0, features)
        assert growth.ask(48) == []
    session.read_features(0, 3)
    assert asked(growth).expand == (3,)


def test_a_drafter_that_reads_no_features_is_never_asked_twice() -> None:
    session, growth = growing(features=False)
    settled(session, growth, features=2)
    session.read_features(0, 3)
    assert growth.ask(48) == []


def test_a_second_answer_changes_scores_and_keeps_identities() -> None:
    session, growth = growing()
    settled(session, growth, features=2)
    session.tree.mark_sent((3, 4))
    session.read_features(0, 3)
    asked(growth)
    answer(growth, (3, ((12, log(0.7)), (77, log(0.1)))))
    tree = session.tree
    assert tree[3].children[11] == 4
    assert tree[3].children[12] == 5
    assert chances(session, 3) == pytest.approx({11: 0.1, 12: 0.7, 77: 0.1})
    assert tree[4].sent


def test_second_answers_that_say_nothing_new_are_not_asked_for_where_they_cost() -> None:
    session, growth = growing()
    session.read_features(0, 2)
    again = []
    for round_number in range(40):
        root = session.tree.root
        for command in growth.ask(48, 0.1, free=False):
            answer(growth, *((serial, scores(0.9)) for serial in command.expand), seconds=0.05)
        while found := growth.ask(48, 0.1, free=False):
            answer(growth, *((serial, ()) for serial in found[0].expand), seconds=0.05)
        session.read_features(0, session.root_position)
        found = growth.ask(48, 0.1, free=False)
        again.append([command.expand for command in found])
        for command in found:
            answer(growth, *((serial, scores(0.9)) for serial in command.expand), seconds=0.05)
        session.dispatch(session.tree.columns((root,)), round_number + 2)
        verdict(session, growth, root, 100 + round_number)
    assert again[0]
    assert not any(again[-10:])


@pytest.mark.parametrize(
    ("nonsense", "expected"),
    [
        (((11, float("nan")), (12, log(0.5))), {12: 0.5}),
        (((11, float("inf")), (12, float("-inf"))), {}),
        (((-3, log(0.5)), (12, log(0.5))), {12: 0.5}),
        (((11, 4.0), (12, 0.0), (13, 0.0), (14, 0.0)), {11: 0.25, 12: 0.25, 13: 0.25, 14: 0.25}),
        (((11, log(0.2)), (11, log(0.3))), {11: 0.3}),
    ],
    ids=["not a number", "infinite", "no token", "more than certain", "twice"],
)
def test_nonsense_is_made_sound(nonsense: tuple[tuple[int, float], ...], expected: dict[int, float]) -> None:
    session, growth = growing()
    asked(growth)
    answer(growth, (3, nonsense), (999, scores(0.5)))
    assert chances(session, 3) == pytest.approx(expected)
    session.check_integrity()


def test_steps_are_small_where_every_token_costs_much() -> None:
    sizes = {}
    for per_token in (0.0001, 0.02):
        _, growth = growing(features=False)
        for _ in range(3):
            (command,) = growth.ask(400, 0.24, 0.06)
            read = len(command.draft)
            children = ((serial, scores(0.3, 0.25, 0.2, 0.15)) for serial in command.expand)
            answer(growth, *children, seconds=0.002 + per_token * read)
        (command,) = growth.ask(400, 0.24, 0.06)
        sizes[per_token] = len(command.expand)
    assert sizes[0.0001] == 16
    assert 1 <= sizes[0.02] <= 3


@pytest.mark.parametrize(("free", "most"), [(True, 16), (False, 8)])
def test_steps_are_smaller_where_the_drafter_takes_time_from_the_stages(free: bool, most: int) -> None:
    _, growth = growing(features=False)
    for _ in range(3):
        (command,) = growth.ask(400, 0.24, 0.06, free=free)
        answer(growth, *((serial, scores(0.3, 0.25, 0.2, 0.15)) for serial in command.expand), seconds=0.0021)
    (command,) = growth.ask(400, 0.24, 0.06, free=free)
    assert len(command.expand) == most


def test_a_drafter_that_is_wrong_is_believed_less_and_one_that_is_right_more() -> None:
    session, growth = growing(features=False)

    def generate(count: int, right: bool) -> float:
        for _ in range(count):
            root = session.tree.root
            for command in growth.ask(48):
                answer(growth, *((serial, scores(0.5)) for serial in command.expand))
            session.dispatch(session.tree.columns((root,)), root)
            verdict(session, growth, root, 11 if right else 50)
            growth.out = None
            session.limit += 1
        return growth.trust

    assert generate(60, right=False) < 0.15
    assert generate(60, right=True) > 1.0


def test_a_step_is_broken_off_once_when_nothing_that_it_expands_is_left() -> None:
    session, growth = growing(features=False)
    assert asked(growth).expand == (3,)
    answer(growth, (3, scores(0.6, 0.2)))
    assert asked(growth).expand == (4, 5)
    assert growth.stop() == [], "both may still come true"
    session.dispatch(session.tree.columns([3, 4]), 2)
    verdict(session, growth, 3, 11)
    assert growth.stop() == [], "one of them is the root now"
    verdict(session, growth, 4, 30)
    assert growth.stop() == [StopGrowth("s", 0)]
    assert growth.stop() == [], "it was said"
    assert growth.ask(48) == [], "the step is still out"


def test_a_step_that_was_broken_off_tells_nothing_and_the_next_one_may_be() -> None:
    session, growth = growing(features=False)
    asked(growth)
    session.dispatch(session.tree.columns([3]), 2)
    verdict(session, growth, 3, 30)
    assert len(growth.stop()) == 1
    hits, known = list(growth.hits), growth.steps.known
    growth.merge(TreeGrown("s", 0, (), 9.0, stopped=True))
    assert growth.hits == hits
    assert growth.steps.known == known
    root = session.tree.root
    command = asked(growth)
    assert command.expand == (root,)
    assert (command.frontier, command.token) == (3, 30), "the drafter counts as given what it was"
    assert growth.stop() == []
    session.dispatch(session.tree.columns([root]), 3)
    verdict(session, growth, root, 31)
    assert len(growth.stop()) == 1


@pytest.mark.parametrize(("share", "expected"), [(0.01, 16), (0.16, 16), (0.24, 24), (0.5, 32), (3.0, 32)])
def test_a_step_that_is_long_beside_a_segment_expands_more_tokens(share: float, expected: int) -> None:
    _, growth = growing(settings=GrowthSettings(expand=16))
    for _ in range(8):
        growth.steps.measured(4, share * 0.1 + 1e-9)
    growth.ask(48, patience=0.1)
    assert growth.expand == expected


def test_on_shared_cores_a_long_step_expands_no_more() -> None:
    _, growth = growing(settings=GrowthSettings(expand=16, expand_contended=8))
    growth.steps.measured(4, 0.05)
    growth.ask(48, patience=0.1, free=False)
    assert growth.expand == 8
