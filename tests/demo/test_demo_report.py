"""Claims about the model card's figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowspec.demo.prompts import DEMO_PROMPTS
from flowspec.training.demo.architecture import new_model, target_config
from flowspec.training.demo.card import CARD
from flowspec.training.demo.losses import bits_per_byte
from flowspec.training.demo.measure import agreement, loss_on
from flowspec.training.sampling import complete, repeated_share


@pytest.fixture(scope="module")
def model() -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 50}
    return new_model(target_config(**shape, num_attention_heads=2), seed=0).eval()


def test_a_loop_is_all_repetition_and_distinct_tokens_are_none() -> None:
    assert repeated_share([1, 2] * 100) > 0.98
    assert repeated_share(list(range(100))) == 0.0
    assert repeated_share([1, 2]) == 0.0


def test_a_model_agrees_with_itself_at_every_position(model: Any) -> None:
    rows = torch.arange(40).view(2, 20)
    assert agreement(model, model, rows) == {1: 1.0, 2: 1.0, 4: 1.0}


def test_an_untrained_model_has_the_loss_of_a_uniform_guess(model: Any) -> None:
    assert loss_on(model, torch.arange(48).view(2, 24)) == pytest.approx(3.91, abs=0.1)


def test_completions_are_reproducible_and_as_long_as_asked(model: Any) -> None:
    prompts = torch.tensor([[2, 3], [4, 5]])
    for temperature in (0.0, 0.8):
        first = complete(model, prompts, 6, temperature)
        assert first.shape == (2, 6)
        torch.testing.assert_close(first, complete(model, prompts, 6, temperature))


def test_bits_per_byte_counts_bytes_and_not_tokens() -> None:
    assert bits_per_byte(0.6931471805599453, tokens=10, size=40) == pytest.approx(0.25)


def test_a_card_without_a_figure_is_an_error() -> None:
    with pytest.raises(KeyError):
        CARD.render({"agreement": {}, "loss_by_position": {}, "training": {"target": {}, "draft": {}}})


def test_there_are_three_demo_prompts_and_none_ends_with_a_line_break() -> None:
    assert len(DEMO_PROMPTS) == 3
    assert not any(prompt[-1].isspace() for prompt in DEMO_PROMPTS)
