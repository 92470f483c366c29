"""The buffer of states holds a run of positions, whatever it is told, and little more memory than that."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from flowspec.drafting.true_states import SPARE, TrueStates
from flowspec.errors import InvariantViolation


def states_of(first: int, end: int) -> torch.Tensor:
    return torch.arange(first, end, dtype=torch.float64)[:, None].expand(-1, 3)


def add(states: TrueStates, first: int, count: int) -> None:
    news = states.news(first, count)
    states.extend(states_of(first, first + count)[news])


@pytest.mark.parametrize("seed", range(10))
def test_it_holds_what_was_added_in_order_and_not_forgotten(seed: int) -> None:
    draw = random.Random(seed)
    states, first, end = TrueStates(400), 0, 0
    for _ in range(200):
        start, count = draw.randint(max(0, end - 5), end + 2), draw.randint(0, 12)
        add(states, start, count)
        if start <= end:
            end = max(end, min(400, start + count))
        passed = draw.randint(first - 2, end + 1)
        if draw.random() < 0.7:
            states.forget(passed)
            first = min(end, max(first, passed))
        assert (states.first, states.end, len(states)) == (first, end, end - first)
        assert states.bytes_held <= max(SPARE, 8 * len(states), 2 * (len(states) + 12)) * 3 * 8
        if first < end:
            positions = np.array(draw.choices(range(first, end), k=5))
            assert torch.equal(states.at(positions)[:, 0], torch.from_numpy(positions).double())
    assert end == 400


def test_positions_that_are_not_held_are_a_defect() -> None:
    states = TrueStates(10)
    with pytest.raises(InvariantViolation, match="asked for"):
        states.at(np.array([0]))
    add(states, 0, 4)
    states.forget(2)
    for position in (1, 4):
        with pytest.raises(InvariantViolation, match="asked for"):
            states.at(np.array([3, position]))
    assert states.news(-1, 9) == slice(0, 0)
