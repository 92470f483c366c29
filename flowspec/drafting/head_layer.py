"""One decoder layer of a draft head, its parts exposed: q, k and v apart from the attention, the attention apart from
what follows.

Training runs the attention over several steps at once, on these parts. Inference runs it over a tree cache, as a
`LeanLayer` that takes the weights over. It is Llama's layer (RMSNorm, RoPE, grouped heads, gated MLP), with the
differences of EAGLE in the first one: EAGLE-1/2 has no norm in front, EAGLE-3 reads embedding and state side by side.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from flowspec.drafting.head_config import HeadConfig
from flowspec.model.lean import LeanLayer, LeanRotary, rms_norm

PositionEmbeddings: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, each (..., positions, head_dim)."""


class Norm(nn.RMSNorm):
    """In few operations, and in float32 at least."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.eps is not None
        return rms_norm(hidden, self.weight, self.eps, exact_dtype(self.weight.dtype))


class Attention(nn.Module):
    """Projections only, under the names that checkpoints use."""

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__()
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = Norm(config.head_dim, config.rms_norm_eps)
            self.k_norm = Norm(config.head_dim, config.rms_norm_eps)

    def split(self, projected: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """(..., positions, heads * head_dim) -> (..., heads, positions, head_dim), normed per head."""
        heads: torch.Tensor = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None:
            heads = norm(heads)
        return heads.transpose(-2, -3)


class GatedMlp(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class HeadLayer(nn.Module):
    """Layer `index` of a head; only the first differs from a plain Llama layer."""

    def __init__(self, config: HeadConfig, index: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        first, eagle3 = index == 0, config.kind == "eagle3"
        self.index = index
        self.eps = eps
        self.self_attn = Attention(config, 2 * size if first and eagle3 else size)
        self.mlp = GatedMlp(config)
        self.input_layernorm = None if first and not eagle3 else Norm(size, eps)
        self.hidden_norm = Norm(size, eps) if first and eagle3 else None
        self.post_attention_layernorm = Norm(size, eps)

    def enter(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual and attention input of a layer behind the first; those of the first are `DraftHead.inputs`."""
        assert self.input_layernorm is not None
        return hidden, self.input_layernorm(hidden)

    @torch.no_grad()
    def silence(self) -> None:
        """Add nothing: what comes out is what went in, until the layer learns."""
        for part in (self.self_attn.o_proj, self.mlp.down_proj):
            for parameter in part.parameters():
                parameter.zero_()

    def lean(self) -> LeanLayer:
        """This layer for inference; norms are shared, and the projections are not to be used here any more."""
        front = self.input_layernorm
        return LeanLayer(
            self.self_attn,
            self.mlp,
            None if front is None else front.weight,
            self.post_attention_layernorm.weight,
            index=self.index,
            eps=self.eps,
            norm_dtype=exact_dtype(self.post_attention_layernorm.weight.dtype),
            activation=self.mlp.activation,
        )

    def qkv(
        self, attention_input: torch.Tensor, position_embeddings: PositionEmbeddings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(..., positions, width) -> q, k (rotated) and v, each (..., heads or kv heads, positions, head_dim)."""
        part = self.self_attn
        cosine, sine = (table.unsqueeze(-3) for table in position_embeddings)
        query = part.split(part.q_proj(attention_input), part.q_norm)
        key = part.split(part.k_proj(attention_input), part.k_norm)
        value = part.split(part.v_proj(attention_input), None)
        return _rotate(query, cosine, sine), _rotate(key, cosine, sine), value

    def finish(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Output projection, residuals and MLP: the layer's output (..., positions, hidden).

        `attended` is (..., heads, positions, head_dim), `residual` (..., positions, hidden).
        """
        hidden = residual + self.self_attn.o_proj(attended.transpose(-2, -3).flatten(-2))
        output: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Rotary:
    """Angles of rotary positions, of every kind that transformers knows, made in float32 as the target's are.

    No part of the module tree: a head that is cast to another dtype keeps its frequencies.
    """

    def __init__(self, config: HeadConfig) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        settings: dict[str, Any] = {
            # transformers wants heads that divide the hidden size, which only head_dim decides here.
            "hidden_size": config.heads * config.head_dim,
            "num_attention_heads": config.heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.context,
            "rope_parameters": dict(config.rope),
        }
        # Also a head on meta has real frequencies: they are no weights.
        with torch.device("cpu"):
            self._angles = LlamaRotaryEmbedding(LlamaConfig(**settings))

    def lean(self, dtype: torch.dtype, device: torch.device) -> LeanRotary:
        """The angles in the form that `LeanLayer` takes."""
        return LeanRotary(self._angles.to(device), dtype, device)

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> PositionEmbeddings:
        """Positions (..., n) -> cosine and sine, each (..., n, head_dim)."""
        if self._angles.inv_freq.device != positions.device:
            self._angles.to(positions.device)
        cosine, sine = self._angles(torch.empty(0, dtype=dtype, device=positions.device), positions)
        return cosine, sine


def _rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding over halves (arXiv:2104.09864, in the order of Llama's checkpoints)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms and logits of a head in `dtype` are computed in."""
    return torch.promote_types(dtype, torch.float32)
