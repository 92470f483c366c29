"""The noise is Philox4x32-10 to the bit, and Gumbel noise in law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowspec.model.noise import HIGHEST, gumbel, philox, uniform
from tests.sampling import naive

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    first, second = words(key)
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in words(counter))
    assert [int(word[0]) for word in philox((first, second), (c0, c1, c2, c3))] == words(result)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_a_uniform_number_is_the_documented_one_to_the_bit(seed: int, position: int, tokens: list[int]) -> None:
    expected = [naive.uniform(seed, position, token) for token in tokens]
    assert uniform(seed, position, np.array(tokens)).tolist() == expected


def test_noise_of_a_token_does_not_depend_on_which_others_are_asked() -> None:
    everything = gumbel(7, 3, np.arange(20_000))
    some = np.array([0, 1, 8191, 8192, 19_999])
    assert gumbel(7, 3, some).tolist() == everything[some].tolist()
    assert [gumbel(7, 3, some[i : i + 1])[0] for i in range(5)] == everything[some].tolist()


def test_noise_has_the_moments_of_the_gumbel_distribution() -> None:
    values = np.concatenate([gumbel(11, position, np.arange(50_000)) for position in range(8)])
    assert abs(values.mean() - 0.5772156649) < 0.01  # the standard error is 0.002
    assert abs(values.var() - np.pi**2 / 6) < 0.03
    assert -3.61 < values.min() <= values.max() < HIGHEST


@pytest.mark.parametrize("other", [(12, 5, 0), (11, 6, 0), (11, 5, 50_000)], ids=["seed", "position", "tokens"])
def test_noise_of_another_seed_position_or_token_is_unrelated(other: tuple[int, int, int]) -> None:
    here = gumbel(11, 5, np.arange(50_000))
    seed, position, start = other
    there = gumbel(seed, position, np.arange(start, start + 50_000))
    assert abs(np.corrcoef(here, there)[0, 1]) < 0.02


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    counts, _ = np.histogram(uniform(3, 9, np.arange(200_000)), bins=100, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi squared, 99 degrees of freedom


def test_the_greatest_noise_stays_below_its_bound() -> None:
    greatest = (2**52 - 1 + 0.5) * 2.0**-52
    assert greatest < 1.0
    assert -np.log(-np.log(greatest)) < HIGHEST
