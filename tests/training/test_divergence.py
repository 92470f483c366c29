"""Claims about the fused divergence: value and gradients are those of the plain formula, whatever the chunks."""

from __future__ import annotations

import pytest
import torch

from flowspec.training.divergence import LinearHead, divergence

STEPS, POSITIONS, HIDDEN, VOCABULARY = 3, 11, 6, 20


def plain(
    states: torch.Tensor,
    head: LinearHead,
    target_states: torch.Tensor,
    target_head: LinearHead,
    weights: torch.Tensor,
    tokens: torch.Tensor | None,
) -> torch.Tensor:
    wanted = torch.nn.functional.linear(target_states, target_head.weight, target_head.bias).softmax(-1)
    if tokens is not None:
        wanted = wanted[:, tokens]
    share = wanted.sum(-1)
    wanted = wanted / share[:, None]
    got = torch.nn.functional.linear(states, head.weight, head.bias).log_softmax(-1)
    each = (wanted * (wanted.log() - got)).sum(-1)
    return (each * weights * share).sum(-1)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("chunk", [1, 200, 1_000_000])
def test_value_and_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, restricted: bool, chunk: int
) -> None:
    monkeypatch.setattr("flowspec.training.divergence.CHUNK_NUMBERS", chunk)
    torch.manual_seed(0)
    exact = torch.float64
    tokens = torch.tensor([1, 2, 5, 8, 13, 19]) if restricted else None
    size = VOCABULARY if tokens is None else len(tokens)
    states = torch.randn(STEPS, POSITIONS, HIDDEN, dtype=exact, requires_grad=True)
    head = LinearHead(
        torch.randn(size, HIDDEN, dtype=exact, requires_grad=True), torch.randn(size, dtype=exact, requires_grad=True)
    )
    assert head.bias is not None
    target_states = torch.randn(POSITIONS, 2 * HIDDEN, dtype=exact)
    target_head = LinearHead(torch.randn(VOCABULARY, 2 * HIDDEN, dtype=exact), torch.randn(VOCABULARY, dtype=exact))
    weights = torch.rand(STEPS, POSITIONS, dtype=exact)
    expected = plain(states, head, target_states, target_head, weights, tokens)
    wanted = torch.autograd.grad(3 * expected.sum(), (states, head.weight, head.bias))
    total, parts = divergence(states, head, target_states, target_head, weights, tokens=tokens, dtype=exact)
    found = torch.autograd.grad(3 * total, (states, head.weight, head.bias))
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(parts, expected.detach())
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_head_gets_no_gradient_and_no_graph_is_needed() -> None:
    states = torch.randn(1, 4, HIDDEN, requires_grad=True)
    head = LinearHead(torch.randn(VOCABULARY, HIDDEN))
    total, _ = divergence(states, head, torch.randn(4, HIDDEN), head, torch.ones(1, 4))
    total.backward()
    assert states.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        again, _ = divergence(states, head, torch.randn(4, HIDDEN), head, torch.ones(1, 4))
    assert not again.requires_grad


def test_equal_distributions_do_not_diverge() -> None:
    states = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    head = LinearHead(torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64))
    total, _ = divergence(states, head, states[0], head, torch.ones(1, 4), dtype=torch.float64)
    assert float(total) == pytest.approx(0.0, abs=1e-12)
