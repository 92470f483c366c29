"""A draft head over whole windows of text, several draft steps deep, with the attention that drafting will have.

Training a head on true hidden states alone leaves it unprepared for its own: two steps into a draft, the states it
reads are its own outputs. So the head is unrolled as EAGLE-3 does it ("training-time test", arXiv:2503.01840), for both
kinds of head: step 0 reads the states that the target's features give, every later step the outputs of the step before,
all positions of a window at once. The tokens are the text's at every step.

Windows are (batch, length). *Base* b, 0 <= b <= length - 2, is the chain of drafts that starts behind the token at
position b + 1: its row at step s takes the token at position b + 1 + s, sits at RoPE position b + s, and predicts the
token at b + 2 + s. It sees the true-state rows of all bases <= b, and its own chain's rows of the steps 1 to s: a
causal matrix, and beside it one diagonal per step. This module knows no loss and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import torch
import torch.nn.functional as functional

from flowspec.drafting.head import DraftHead

KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one step, each (batch, kv heads, bases, head_dim)."""

BLOCK: Final = 256
"""Queries that are scored together: keys behind the block's last query are not even multiplied."""


def unroll(head: DraftHead, tokens: torch.Tensor, features: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """The states after each of `steps` draft steps: (batch, length - 1 - s, hidden) for s = 0, 1, ...

    `tokens` are (batch, length), `features` (batch, length, `head.feature_size`). Row b of step s predicts what follows
    position b + 1 + s; `head.output` makes logits of it. A window must be longer than `steps` + 1.
    """
    length = tokens.size(1)
    if length < steps + 2:
        raise ValueError(f"a window of {length} tokens is too short for {steps} steps")
    # Under autocast products are narrow; what is added up and normed stays as wide as the weights.
    exact = head.stack[0].post_attention_layernorm.weight.dtype
    embeds = head.embed(tokens[:, 1:]).to(exact)
    states = head.project(features[:, :-1])
    seen: list[list[KeysValues]] = [[] for _ in head.layers]
    for step in range(steps):
        bases = length - 1 - step
        rope = head.rotary(torch.arange(step, step + bases, device=tokens.device))
        residual, attention_input = head.inputs(embeds[:, step:], states[:, :bases].to(exact))
        hidden = residual = residual.to(exact)
        for index, layer in enumerate(head.stack):
            if index:
                residual, attention_input = layer.enter(hidden)
            query, key, value = layer.qkv(attention_input, rope)
            seen[index].append((key.to(value.dtype), value))
            hidden = layer.finish(residual, chain_attention(query.to(value.dtype), seen[index]))
        states = head.next_states(hidden)
        yield states


def chain_attention(query: torch.Tensor, seen: list[KeysValues]) -> torch.Tensor:
    """Attention of the last step's queries (batch, heads, bases, head_dim): the same shape.

    `seen` has the keys and values of all steps up to theirs; those of step 0 are seen causally, of each later step only
    a base's own.
    """
    groups = query.size(1) // seen[0][0].size(1)
    bases = query.size(2)
    truth = _repeated(seen[0], groups, bases)
    if len(seen) == 1:
        return functional.scaled_dot_product_attention(query, *truth, is_causal=True)
    own = [_repeated(step, groups, bases) for step in seen[1:]]
    scaled = query * query.size(-1) ** -0.5
    blocks = [_block(scaled, truth, own, start, min(start + BLOCK, bases)) for start in range(0, bases, BLOCK)]
    return torch.cat(blocks, dim=2)


def _repeated(step: KeysValues, groups: int, bases: int) -> KeysValues:
    key, value = (part[:, :, :bases] for part in step)
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def _block(query: torch.Tensor, truth: KeysValues, own: list[KeysValues], start: int, end: int) -> torch.Tensor:
    """The bases [start, end) of `chain_attention`; `query` is scaled already."""
    part = query[:, :, start:end]
    keys, values = (each[:, :, :end] for each in truth)
    later = torch.ones(end - start, end, dtype=torch.bool, device=part.device).triu(start + 1)
    causal = (part @ keys.transpose(-1, -2)).masked_fill(later, -torch.inf)
    chain = [(part * key[:, :, start:end]).sum(-1, keepdim=True) for key, _ in own]
    shares = torch.cat([causal, *chain], dim=-1).softmax(-1).to(values.dtype)
    attended = shares[..., :end] @ values
    for index, (_, value) in enumerate(own):
        attended = attended + shares[..., end + index, None] * value[:, :, start:end]
    return attended
