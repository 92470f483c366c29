"""The index of a text says what followed the same tokens, with the probabilities that its formula gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowspec.schedule.suffix_index import LONGEST, SuffixIndex

TEXTS = st.lists(st.integers(0, 3), min_size=2, max_size=60)


def indexed(tokens: list[int]) -> SuffixIndex:
    index = SuffixIndex()
    for token in tokens:
        index.add(token)
    return index


@given(TEXTS)
def test_probabilities_are_what_the_documented_formula_gives(tokens: list[int]) -> None:
    index = indexed(tokens)
    shares = dict.fromkeys(range(4), 0.0)
    for length in range(1, min(LONGEST, len(tokens)) + 1):
        context = tokens[-length:]
        after = [tokens[i + length] for i in range(len(tokens) - length) if tokens[i : i + length] == context]
        if not after:
            break
        doubt = len(set(after)) + 2
        shares = {t: (after.count(t) + doubt * share) / (len(after) + doubt) for t, share in shares.items()}
    expected = sorted((share for share in shares.values() if share > 0), reverse=True)
    found = index.followers(tokens[-LONGEST:], 4)
    assert [math.exp(score) for _, score in found] == pytest.approx(expected)
    assert all(math.isclose(math.exp(score), shares[token]) for token, score in found)


@given(TEXTS)
def test_the_follower_that_is_found_fast_has_the_probability_that_the_slow_way_gives_it(tokens: list[int]) -> None:
    index = indexed(tokens)
    context = tokens[-LONGEST:]
    found, everything = index.follower(context), dict(index.followers(context, 4))
    if found is None:
        assert not everything
        return
    token, chance = found
    assert chance == pytest.approx(math.exp(everything[token]))


def test_of_followers_that_came_equally_often_the_latest_is_taken() -> None:
    index = indexed([1, 2, 1, 3, 1])
    found = index.follower([1])
    assert found is not None
    assert found[0] == 3
