"""Growth is seen behind noise, and noise is no growth."""

from __future__ import annotations

import random

import pytest

from flowspec.bench.trend import ALLOWED_BYTES, Trend, trend

HOUR = 3600.0
BEGIN = 80e6


def samples(per_second: float, *, noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    dice = random.Random(seed)
    return [(second, BEGIN + per_second * second + dice.gauss(0.0, noise)) for second in range(0, 1440, 10)]


def test_a_line_without_noise_is_found_exactly() -> None:
    found = trend(samples(500.0))
    assert found.slope == pytest.approx(500.0)
    assert found.seconds == 1430
    assert found.grown == pytest.approx(500.0 * 1430)
    assert found.begin < found.end < found.most == BEGIN + 500.0 * 1430


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_bursts_are_no_growth(seed: int) -> None:
    noisy = samples(0.0, noise=300_000.0, seed=seed)
    dice = random.Random(seed)
    for place in dice.sample(range(len(noisy)), 20):
        noisy[place] = (noisy[place][0], noisy[place][1] + 20e6)
    assert trend(noisy).flat
    assert trend(noisy).most > BEGIN + 15e6


@pytest.mark.parametrize("seed", range(5))
def test_a_kilobyte_per_request_is_too_much(seed: int) -> None:
    requests_per_second = 2.5
    assert not trend(samples(1024 * requests_per_second, noise=300_000.0, seed=seed)).flat


def test_a_step_is_growth_though_the_line_is_level() -> None:
    values = [BEGIN] * 100 + [BEGIN + 2 * ALLOWED_BYTES] * 20
    found = trend([(10.0 * number, value) for number, value in enumerate(values)])
    assert found.slope == 0.0
    assert not found.flat


def test_what_shrinks_is_flat() -> None:
    assert trend(samples(-2000.0)).flat
    assert Trend(HOUR, BEGIN, BEGIN, BEGIN, 0.0).flat


def test_one_sample_makes_no_line() -> None:
    with pytest.raises(ValueError, match="1 samples"):
        trend([(0.0, 1.0)])
