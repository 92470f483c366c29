"""How likely a draft and its target draw the same token with the same noise, and which way that probability grows.

A pipeline draws argmax(log p + g) with Gumbel noise g that its drafter knows, and so the drafter's first guess is
argmax(log q + g). Both are token i with probability 1 / sum over j of max(p_j / p_i, q_j / q_i) (Moulton and Jiang,
arXiv:1809.04052; as coupling for speculative decoding: Daliri, Musco and Suresh, arXiv:2408.07978). With the tokens
ordered by p / q the maximum is q's for all up to i and p's for all behind it, so running sums give every such term at
once. This module knows distributions alone, no model.
"""

from __future__ import annotations

from typing import Final

import torch

TINY: Final = 1e-30
"""Probabilities are taken for no less: their quotients must stay finite in float32."""
LISTED: Final = 512
"""Tokens that are looked at one by one, the target's likeliest; all others count as one."""


def coupled(target: torch.Tensor, draft: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the probability that both draw the same token, its gradient with respect to the draft's logits).

    Both are probabilities (..., count), of one shape but for dimensions that broadcast; the gradient is (..., count).
    The last entry stands for all tokens that are not listed: that both draw one of those counts as different tokens.
    """
    p, q = torch.broadcast_tensors(target.clamp(min=TINY), draft.clamp(min=TINY))
    order = (p / q).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    before = q.cumsum(-1)
    behind = p.sum(-1, keepdim=True) - p.cumsum(-1)
    share = p / (q * behind.clamp_(min=0) + p * before)
    both = (q * share).masked_fill(order == p.size(-1) - 1, 0.0)
    # A term falls with each q_j before its own token, and rises with its own q.
    lost = (both * share).flip(-1).cumsum(-1).flip(-1)
    slope = both * share * before - q * lost
    return both.sum(-1), torch.empty_like(slope).scatter_(-1, order, slope)


def coupled_likeliest(target: torch.Tensor, draft: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of large vocabularies, a little too low: that both draw one token beyond the `LISTED` is left out.

    `target` is (positions, vocabulary), `draft` (steps, positions, vocabulary); the probability is (steps, positions),
    the gradient (steps, positions, vocabulary). Tokens beyond share what all of them get by their probability.
    """
    likeliest = target.topk(min(LISTED, target.size(-1)), dim=-1, sorted=False)
    places = likeliest.indices.expand(draft.size(0), -1, -1)
    listed = _with_others(draft.gather(-1, places))
    probability, slope = coupled(_with_others(likeliest.values), listed)
    pull = draft * (slope[..., -1:] / listed[..., -1:].clamp(min=TINY))
    return probability, pull.scatter_(-1, places, slope[..., :-1])


def _with_others(listed: torch.Tensor) -> torch.Tensor:
    """Probabilities, and behind them what they leave of 1."""
    return torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], dim=-1)
