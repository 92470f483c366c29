"""Claims about draws with shared noise: probability and slope are those of the formula, and of drawing."""

from __future__ import annotations

import pytest
import torch

from flowspec.training.coupling import coupled
from flowspec.training.divergence import LinearHead, divergence

EXACT = torch.float64


def formula(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """Term by term, as the papers write it; the last entry stands for other tokens, of which none is drawn alike."""
    by_token = [entries[..., None, :] / entries[..., :, None] for entries in (target, draft)]
    return (1 / torch.maximum(*by_token).sum(-1))[..., :-1].sum(-1)


def distributions(*shape: int) -> torch.Tensor:
    return (2 * torch.randn(*shape, dtype=EXACT)).softmax(-1)


def test_the_probability_and_its_slope_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    target = distributions(5, 9)
    logits = (2 * torch.randn(3, 5, 9, dtype=EXACT)).requires_grad_()
    wanted = formula(target, logits.softmax(-1))
    (slope,) = torch.autograd.grad(wanted.sum(), logits)
    probability, found = coupled(target, logits.detach().softmax(-1))
    torch.testing.assert_close(probability, wanted.detach())
    torch.testing.assert_close(found, slope)


def test_so_often_do_draws_with_the_same_noise_agree() -> None:
    torch.manual_seed(1)
    target, draft = distributions(8), distributions(8)
    noise = -torch.empty(100_000, 8, dtype=EXACT).exponential_().log()
    drawn, guessed = ((each.log() + noise).argmax(-1) for each in (target, draft))
    agreed = ((drawn == guessed) & (drawn != 7)).double().mean()
    probability, _ = coupled(target, draft)
    assert float(probability) == pytest.approx(float(agreed), abs=0.01)


def test_equal_distributions_draw_alike_whatever_is_listed() -> None:
    target = distributions(4, 6)
    probability, slope = coupled(target, target)
    torch.testing.assert_close(probability, 1 - target[:, -1])
    assert slope.isfinite().all()


def test_a_probability_of_nothing_is_no_division_by_it() -> None:
    target = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for draft in (target, target.flip(0), torch.full((4,), 0.25)):
        probability, slope = coupled(target, draft)
        torch.testing.assert_close(probability, draft[0], atol=1e-6, rtol=0)
        assert slope.isfinite().all()


@pytest.mark.parametrize("listed", [5, 20])
def test_the_divergence_with_it_has_the_gradients_of_both(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    monkeypatch.setattr("flowspec.training.coupling.LISTED", listed)
    torch.manual_seed(2)
    steps, positions, hidden, vocabulary = 3, 7, 6, 20
    states = torch.randn(steps, positions, hidden, dtype=EXACT, requires_grad=True)
    head = LinearHead(torch.randn(vocabulary, hidden, dtype=EXACT, requires_grad=True))
    target_states = torch.randn(positions, hidden, dtype=EXACT)
    target_head = LinearHead(torch.randn(vocabulary, hidden, dtype=EXACT))
    weights = torch.rand(steps, positions, dtype=EXACT)
    target = (target_states @ target_head.weight.mT).softmax(-1)
    draft = (states @ head.weight.mT).softmax(-1)
    places = target.topk(listed).indices
    alike = formula(*(with_others(each.gather(-1, places.expand_as(each[..., :listed]))) for each in (target, draft)))
    apart = (target * (target.log() - draft.log())).sum(-1)
    expected = ((apart + 0.7 * (1 - alike)) * weights).sum()
    total, parts = divergence(states, head, target_states, target_head, weights, dtype=EXACT, coupling=0.7)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(parts, (apart * weights).sum(-1).detach())
    wanted = torch.autograd.grad(expected, (states, head.weight))
    for mine, theirs in zip(torch.autograd.grad(total, (states, head.weight)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def with_others(listed: torch.Tensor) -> torch.Tensor:
    return torch.cat([listed, (1 - listed.sum(-1, keepdim=True)).clamp(min=1e-30)], dim=-1)
