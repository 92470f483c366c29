"""Several drafters as one: their children are joined on one scale, and one that fails does not take the others down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowspec.drafting.calibration import BASE, KNOWING_NOTHING, Evidence, OpinionPool, evidence
from flowspec.drafting.causal_lm import CausalLmDrafter
from flowspec.drafting.drafter import Children, Unwanted, Wanted, always
from flowspec.drafting.hybrid import HybridDrafter
from flowspec.drafting.ngram import NgramDrafter
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import DraftTokens
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint

PROMPT = (5, 6, 7)
chances = st.floats(0.0, 1.0)


class Scripted:
    """Answers every serial with the same opinion, and writes down what it was told."""

    weight_bytes = 10
    layers = 2

    def __init__(self, opinion: Mapping[int, float], name: str = "scripted", taps: tuple[int, ...] = ()) -> None:
        self.opinion = dict(opinion)
        self.name = name
        self.taps = taps
        self.told: list[str] = []
        self.features: list[torch.Tensor] = []
        self.widths: list[int] = []
        self.breaks: frozenset[str] = frozenset()
        self.obeys = False

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.breaks:
            raise RuntimeError(f"{self.name} cannot {what}")

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._tell("open")

    def close(self, session: str) -> None:
        self._tell("close")

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        self.features.append(features)
        self._tell("take")

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        self._tell("grow")
        if self.obeys and not wanted():
            raise Unwanted
        self.widths.append(width)
        children = tuple((token, math.log(chance)) for token, chance in self.opinion.items())
        return tuple((serial, children) for serial in request.expand)


def prompt(epoch: int = 0) -> GrowTree:
    return GrowTree("s", epoch, (2,), DraftTokens((0, 1, 2), (-1, 0, 1), PROMPT), 2)


def opened(*members: Scripted) -> HybridDrafter:
    hybrid = HybridDrafter(members)
    hybrid.open("s", SamplingParameters(), 100)
    return hybrid


def shares(children: Children) -> dict[int, float]:
    ((_, found),) = children
    return {token: math.exp(score) for token, score in found}


# ---- the pool --------------------------------------------------------------------------------------------------------


def log_odds(chance: float) -> float:
    return math.log(chance / (1.0 - chance))


def at_one_place(*opinions: Mapping[int, float]) -> Evidence:
    """What drafters say of one place, given as token -> probability."""
    scored = [[(token, math.log(max(chance, 1e-300))) for token, chance in each.items()] for each in opinions]
    return evidence([[each] for each in scored])


def by_token(found: Evidence) -> dict[int, list[float]]:
    return dict(zip(found.tokens.tolist(), found.found.T.tolist(), strict=True))


def chances_of(pool: OpinionPool, found: Evidence) -> dict[int, float]:
    return dict(zip(found.tokens.tolist(), pool.probabilities(found).tolist(), strict=True))


def best_of(pool: OpinionPool, found: Evidence) -> list[tuple[int, float]]:
    (ranked,) = pool.best(found, 1, 99)
    return [(token, math.exp(score)) for token, score in ranked]


def test_one_opinion_with_weight_one_is_believed_as_it_is() -> None:
    found = at_one_place({1: 0.6, 2: 0.3})
    assert best_of(OpinionPool([1.0]), found) == [(1, pytest.approx(0.6)), (2, pytest.approx(0.3))]


def test_a_drafter_without_an_opinion_changes_nothing() -> None:
    alone, beside = at_one_place({1: 0.6, 2: 0.3}), at_one_place({1: 0.6, 2: 0.3}, {})
    assert chances_of(OpinionPool([1.0, 0.7]), beside) == pytest.approx(chances_of(OpinionPool([1.0]), alone))


def test_what_a_sure_drafter_does_not_name_is_less_likely_than_what_nobody_knows_of() -> None:
    found = by_token(at_one_place({1: 0.4}, {2: 0.9}))
    assert found[1][1] < 0
    assert found[2][0] == pytest.approx(log_odds(BASE * 0.6) - log_odds(BASE))


def test_agreement_makes_surer_than_either() -> None:
    assert chances_of(OpinionPool([1.0, 1.0]), at_one_place({1: 0.6}, {1: 0.6}))[1] > 0.6


def test_places_are_apart_and_each_is_at_hand() -> None:
    """Two drafters on three places, the second of which nobody knows anything of."""
    one = [[(4, math.log(0.5)), (2, math.log(0.25))], [], [(4, math.log(0.1))]]
    other = [[(2, math.log(0.75))], [], [(9, math.log(0.2)), (9, math.nan), (-1, -0.1), (1 << 40, -0.1)]]
    found, pool = evidence([one, other]), OpinionPool([1.0, 0.5], 0.1)
    assert found.places.tolist() == [0, 0, 2, 2]
    alone = [at_one_place({4: 0.5, 2: 0.25}, {2: 0.75}), at_one_place({}, {}), at_one_place({4: 0.1}, {9: 0.2})]
    for place, same in enumerate(alone):
        assert found.at(place).tokens.tolist() == same.tokens.tolist()
        assert found.at(place).found == pytest.approx(same.found)
    whole = pool.best(found, 3, 99)
    assert [len(each) for each in whole] == [2, 0, 2]
    assert pool.best(found, 3, 1) == [each[:1] for each in whole]
    assert dict(whole[2]) == pytest.approx(
        {token: math.log(chance) for token, chance in chances_of(pool, found.at(2)).items()}
    )


def test_what_nobody_says_anything_of_has_no_evidence() -> None:
    found = evidence([[[], []], [[], []]])
    assert len(found) == 0
    assert OpinionPool([1.0, 1.0]).best(found, 2, 4) == [[], []]


@given(st.dictionaries(st.integers(0, 9), chances, max_size=6), st.dictionaries(st.integers(0, 9), chances, max_size=6))
def test_children_are_ordered_and_never_more_than_certain(one: dict[int, float], other: dict[int, float]) -> None:
    found = best_of(OpinionPool([1.0, 0.75], 0.45), at_one_place(one, other))
    assert {token for token, _ in found} == {*one, *other}
    given = [chance for _, chance in found]
    assert given == sorted(given, reverse=True)
    assert all(0.0 < chance <= 1.0 for chance in given)
    assert sum(given) <= 1.0 + 1e-9


@given(chances, chances, chances)
def test_a_likelier_opinion_never_makes_less_likely(low: float, high: float, other: float) -> None:
    beyond = [[log_odds(min(max(each, 1e-4), 0.999)) - KNOWING_NOTHING for each in sorted((low, high))]]
    beyond.append([log_odds(min(max(other, 1e-4), 0.999)) - KNOWING_NOTHING] * 2)
    less, more = OpinionPool([1.1, 0.5], 0.3).probabilities(
        Evidence(np.zeros(2, np.int64), np.arange(2), np.array(beyond))
    )
    assert less <= more


def test_a_drafter_that_is_surely_wrong_loses_its_weight_within_tens_of_tokens() -> None:
    pool, found = OpinionPool([1.0, 1.0]), at_one_place({1: 0.9, 3: 0.05}, {2: 0.6, 4: 0.2})
    for _ in range(40):
        pool.learn(found, 2)
    ranked = dict(best_of(pool, found))
    assert ranked[2] > 2 * ranked[1]
    assert pool.weights[0] < 0.5 < pool.weights[1]


# ---- the drafter -----------------------------------------------------------------------------------------------------


def test_children_of_all_members_are_joined_each_token_once_and_cut_to_the_width() -> None:
    model, ngram = Scripted({1: 0.5, 2: 0.3, 3: 0.1}), Scripted({2: 0.6, 9: 0.2}, "ngram")
    found = shares(opened(ngram, model).grow(prompt(), 3))
    assert next(iter(found)) == 2
    assert len(found) == 3
    assert found[2] > max(found[1], 0.3)
    assert model.widths == ngram.widths == [6]


def test_members_without_children_leave_the_others_as_they_are() -> None:
    assert shares(opened(Scripted({}), Scripted({4: 0.5}, "ngram")).grow(prompt(), 4)).keys() == {4}
    assert opened(Scripted({}), Scripted({})).grow(prompt(), 4) == ((2, ()),)


def test_a_single_member_is_believed_until_outcomes_correct_it() -> None:
    hybrid = opened(Scripted({1: 0.5, 2: 0.3}))
    assert shares(hybrid.grow(prompt(), 4)) == pytest.approx({1: 0.5, 2: 0.3})
    for serial in range(3, 60):
        draft = DraftTokens((serial,), (serial - 1,), (1,))
        answer = hybrid.grow(GrowTree("s", 0, (serial,), draft, 2, serial - 1, 1), 4)
    found = shares(answer)
    assert list(found) == [1, 2]
    assert 0.55 < found[1] < 0.9


@pytest.mark.parametrize("moment", ["open", "grow", "take"])
def test_a_member_that_fails_is_left_out_of_the_session_and_of_no_other(moment: str) -> None:
    broken, good = Scripted({1: 0.9}, taps=(3,)), Scripted({2: 0.4}, "ngram")
    broken.breaks = frozenset({moment})
    hybrid = opened(good, broken)
    hybrid.take_features("s", 0, 0, torch.ones(2, 4))
    assert shares(hybrid.grow(prompt(), 4)).keys() == {2}
    calls = len(broken.told)
    assert shares(hybrid.grow(prompt(), 4)).keys() == {2}
    assert len(broken.told) == calls
    hybrid.close("s")
    broken.breaks = frozenset()
    hybrid.open("s", SamplingParameters(), 100)
    assert shares(hybrid.grow(prompt(), 4)).keys() == {1, 2}


def test_the_last_member_that_fails_is_heard() -> None:
    one, other = Scripted({1: 0.9}), Scripted({2: 0.9})
    one.breaks = other.breaks = frozenset({"grow", "close"})
    hybrid = opened(one, other)
    with pytest.raises(RuntimeError, match="cannot grow"):
        hybrid.grow(prompt(), 4)
    assert hybrid.grow(prompt(), 4) == ((2, ()),)
    hybrid.close("s")
    assert hybrid.grow(prompt(), 4) == ()


def test_every_member_gets_the_features_of_its_own_taps() -> None:
    one, other, none = Scripted({}, taps=(2, 5)), Scripted({}, taps=(5, -1)), Scripted({})
    hybrid = opened(one, other, none)
    assert hybrid.taps == (2, 5, -1)
    assert (hybrid.weight_bytes, hybrid.layers) == (30, 6)
    features = torch.arange(12.0).view(2, 6)
    hybrid.take_features("s", 0, 7, features)
    assert torch.equal(one.features[0], features[:, :4])
    assert torch.equal(other.features[0], features[:, 2:])
    assert none.features == []
    hybrid.take_features("unknown", 0, 0, features)


def test_what_came_true_is_learned_from_along_the_accepted_path() -> None:
    """Verdicts say that the ngram's token 2 came after 2 and after 3, never the model's token 1."""
    hybrid = opened(Scripted({2: 0.5}, "ngram"), Scripted({1: 0.9}))
    first = shares(hybrid.grow(prompt(), 4))
    frontier = 2
    for serial in range(3, 120):
        draft = DraftTokens((serial,), (serial - 1,), (2,))
        found = hybrid.grow(GrowTree("s", 0, (serial,), draft, 2, frontier, 2), 4)
        # Every second verdict moves two tokens on, the others none.
        frontier = serial - 1 if serial % 2 else frontier
    last = shares(found)
    assert first[1] > first[2]
    assert last[2] > last[1]


def test_a_new_epoch_begins_with_the_first_weights() -> None:
    hybrid = opened(Scripted({2: 0.5}, "ngram"), Scripted({1: 0.9}))
    first = hybrid.grow(prompt(), 4)
    for serial in range(3, 60):
        draft = DraftTokens((serial,), (serial - 1,), (2,))
        hybrid.grow(GrowTree("s", 0, (serial,), draft, 2, serial - 1, 2), 4)
    assert hybrid.grow(prompt(epoch=1), 4) == first


def test_real_members_agree_on_what_lives(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "draft", layers=1)
    model = CausalLmDrafter.load(Checkpoint(folder), dtype="float32", device="cpu")
    hybrid = HybridDrafter([NgramDrafter(), model])
    hybrid.open("s", SamplingParameters(), 200)
    tokens = (5, 6, 7, 8, 5, 6)
    last = len(tokens) - 1
    request = GrowTree("s", 0, (last,), DraftTokens(tuple(range(6)), tuple(range(-1, 5)), tokens), last)
    ((serial, children),) = hybrid.grow(request, 8)
    assert serial == last
    assert 7 in {token for token, _ in children}
    assert len(children) == 8
    # 6 (token 7) and 7 (token 9) follow; a verdict says 9, so 6 is dead.
    hybrid.grow(GrowTree("s", 0, (6, 7), DraftTokens((6, 7), (5, 5), (7, 9)), last), 4)
    answer = hybrid.grow(GrowTree("s", 0, (6, 7, 8), DraftTokens((8,), (7,), (7,)), last, 5, 9), 4)
    assert {serial for serial, children in answer if children} == {8}
    hybrid.close("s")


def test_a_member_that_breaks_off_has_not_failed_and_all_others_hear_the_request() -> None:
    model, ngram = Scripted({1: 0.9}), Scripted({2: 0.4}, "ngram")
    model.obeys = True
    hybrid = opened(model, ngram)
    with pytest.raises(Unwanted):
        hybrid.grow(prompt(), 4, lambda: False)
    assert ngram.told == ["open", "grow"]
    assert shares(hybrid.grow(prompt(), 4)).keys() == {1, 2}
