"""How far a draft's distributions are from the target's, from hidden states, without ever holding all logits.

With a vocabulary of 128,000, the logits of one window fill gigabytes. Both LM heads are therefore applied to a chunk of
positions at a time, and the gradient of the divergence with respect to the logits, which is softmax(draft) - target, is
turned into that of states and weights at once. A target's distribution is computed once for all draft steps. What the
draft is to gain besides, a token drawn like the target's, is told from the same distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from flowspec.training.coupling import coupled_likeliest

CHUNK_NUMBERS: Final = 2_000_000
"""Logits that are held at once, on a CPU: 8 MB in float32, which is about what stays in its caches."""
CHUNK_NUMBERS_ACCELERATOR: Final = 256_000_000


@dataclass(frozen=True, slots=True)
class LinearHead:
    """An LM head: `weight` (vocabulary, hidden), `bias` (vocabulary,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


def divergence(
    states: torch.Tensor,
    head: LinearHead,
    target_states: torch.Tensor,
    target_head: LinearHead,
    weights: torch.Tensor,
    *,
    tokens: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    coupling: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weighted divergences, its parts per step): a scalar with gradients, and (steps,) without, in nats.

    `states` (steps, positions, hidden) are what `head` reads, `target_states` (positions, target hidden) what
    `target_head` reads; `weights` (steps, positions), 0 where a step has no row. The divergence is the forward one,
    KL(target || draft) (Hinton et al., arXiv:1503.02531). With `tokens` (draft vocabulary,) the target's distribution
    is restricted to them and renormalised, and a position counts by the share of the target's probability that they
    hold. Products run in `dtype`, the rest in float32 at least. With `coupling` the sum, but not its parts, has so many
    times the probability that draft and target draw different tokens with the same noise.
    """
    total, parts = _Divergence.apply(  # type: ignore[no-untyped-call]
        states,
        head.weight,
        head.bias,
        target_states.detach(),
        target_head,
        weights,
        tokens,
        dtype,
        coupling,
        any(part.requires_grad for part in (states, head.weight)),
    )
    return total, parts


class _Divergence(torch.autograd.Function):
    """Gradients are made with the loss: the backward pass only scales them."""

    @staticmethod
    def forward(
        context: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target_states: torch.Tensor,
        target_head: LinearHead,
        weights: torch.Tensor,
        tokens: torch.Tensor | None,
        dtype: torch.dtype,
        coupling: float,
        gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs = context.needs_input_grad
        exact = torch.promote_types(dtype, torch.float32)
        head, target = weight.to(dtype), target_head.weight.to(dtype)
        states_grad = torch.zeros_like(states) if gradients and needs[0] else None
        weight_grad = torch.zeros_like(weight, dtype=exact) if gradients and needs[1] else None
        bias_grad = torch.zeros_like(bias, dtype=exact) if gradients and bias is not None and needs[2] else None
        parts = torch.zeros(states.size(0), dtype=exact, device=states.device)
        different = torch.zeros((), dtype=exact, device=states.device)
        limit = CHUNK_NUMBERS if states.device.type == "cpu" else CHUNK_NUMBERS_ACCELERATOR
        step = max(1, limit // (states.size(0) * target.size(0)))
        for start in range(0, states.size(1), step):
            chunk = slice(start, start + step)
            wanted, entropy, share = _wanted(target_states[chunk].to(dtype), target, target_head.bias, tokens, exact)
            rows = states[:, chunk].to(dtype)
            logits = (rows @ head.mT).to(exact)
            if bias is not None:
                logits += bias
            certain = logits.logsumexp(-1)
            row_weights = weights[:, chunk] * share
            agreed = torch.einsum("pv,spv->sp", wanted, logits)
            parts += ((certain - agreed - entropy) * row_weights).sum(-1)
            slope = logits.sub_(certain[..., None]).exp_()
            if coupling:
                alike, pull = coupled_likeliest(wanted, slope)
                different += ((1 - alike) * row_weights).sum()
                slope.sub_(pull, alpha=coupling)
            if not gradients:
                continue
            slope.sub_(wanted).mul_(row_weights[..., None])
            narrow = slope.to(dtype)
            if states_grad is not None:
                states_grad[:, chunk] = narrow @ head
            if weight_grad is not None:
                weight_grad += narrow.flatten(0, 1).mT @ rows.flatten(0, 1)
            if bias_grad is not None:
                bias_grad += slope.sum((0, 1))
        context.save_for_backward(states_grad, weight_grad, bias_grad)
        total = parts.sum() + coupling * different
        context.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    def backward(context: Any, *given: torch.Tensor) -> Any:
        scaled = (None if part is None else part * given[0] for part in context.saved_tensors)
        return *scaled, None, None, None, None, None, None, None


def _wanted(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor | None,
    exact: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """The target's probabilities (positions, draft vocabulary), their entropy (positions,), and their share of all."""
    logits = (states @ weight.mT).to(exact)
    if bias is not None:
        logits += bias
    share: torch.Tensor | float = 1.0
    if tokens is not None:
        whole = logits.logsumexp(-1)
        logits = logits[:, tokens]
        share = (logits.logsumexp(-1) - whole).exp()
    logarithms = logits.log_softmax(-1)
    probabilities = logarithms.exp()
    return probabilities, -torch.einsum("pv,pv->p", probabilities, logarithms), share
