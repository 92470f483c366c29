"""Measuring a block says how long a segment takes and leaves the block as it was."""

from __future__ import annotations

import pytest
import torch

from flowspec.model.curve import TOKENS, measure
from flowspec.schedule.events import interpolate
from tests.model.conftest import WriteCheckpoint
from tests.model.running import Blocks


@pytest.mark.parametrize("cut", [0, 1])
def test_the_curve_has_a_point_per_size_and_never_falls(checkpoint: WriteCheckpoint, cut: int) -> None:
    block = Blocks(checkpoint("qwen3"), (0, 1, 3)).blocks[cut]
    tokens, seconds = measure(block, budget=0.0)
    assert tokens == TOKENS
    assert list(seconds) == sorted(seconds)
    assert seconds[0] > 0
    assert interpolate(tuple(zip(tokens, seconds, strict=True)), 16) == seconds[4]


def test_a_model_with_a_short_context_can_be_measured(checkpoint: WriteCheckpoint) -> None:
    block = Blocks(checkpoint("llama", context=72), (0, 3)).blocks[0]
    assert len(measure(block, budget=0.0)[0]) == len(TOKENS)


def test_measuring_leaves_no_trace_in_the_results(checkpoint: WriteCheckpoint) -> None:
    blocks = Blocks(checkpoint("llama"), (0, 3))
    before = blocks.run_chain([5, 6, 7])
    measure(blocks.blocks[0], budget=0.0)
    assert torch.equal(blocks.fresh().run_chain([5, 6, 7]), before)
