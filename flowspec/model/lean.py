"""Decoder layers of Llama's shape in as few operations as they need: for small models most of a layer is overhead.

`adopt` takes the weights of transformers' own layers over where they are known to compute exactly this: RMSNorm, q, k
and v with or without bias and norms, RoPE over halves, grouped heads, and a SiLU-gated MLP. Weights that read the same
input lie in one matrix, and exist once. What it does not know it leaves as it is. Masks and rows are the caller's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flowspec.model.arrangement import Product, product
from flowspec.model.attention import tree_attention
from flowspec.model.cache import TreeCache
from flowspec.model.columns import IntArray
from flowspec.model.layout import LEAN

STATIC_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions whose angles depend on the position alone, not on how long the sequence has become."""
ANGLE_BLOCK: Final = 256
"""Positions whose angles are made at once..."""
ANGLE_BLOCKS: Final = 64
"""...and how many such blocks are kept: 16 MB in float32 where heads have 128 dimensions, however long the context."""

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, each (q, 1, head_dim); the first half of the sine is negated."""


class LeanLayer(nn.Module):
    """One layer, made of the parts of another one, which is not to be used any more.

    `attention` has q_proj, k_proj, v_proj, o_proj, head_dim and maybe q_norm and k_norm; `mlp` has gate_proj, up_proj
    and down_proj. Norms are the weights of RMSNorms that all have the same `eps`; they are taken in `norm_dtype`. A
    layer without a norm in front is called by `attend` alone. Weights may be arranged and moved until the first
    forward.
    """

    def __init__(
        self,
        attention: Any,
        mlp: Any,
        input_norm: nn.Parameter | None,
        mlp_norm: nn.Parameter,
        *,
        index: int,
        eps: float,
        norm_dtype: torch.dtype = torch.float32,
        activation: Product = functional.silu,
    ) -> None:
        super().__init__()
        self.index = index
        self.head_dim = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.head_dim
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.input_norm = input_norm
        self.mlp_norm = mlp_norm
        self.eps = eps
        self._norm_dtype = norm_dtype
        self.qkv = _join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = attention.o_proj
        self.gate_up = _join([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj
        self.head_norms = None
        """Of queries and keys, head by head."""
        if getattr(attention, "q_norm", None) is not None:
            self.head_norms = nn.ParameterList((attention.q_norm.weight, attention.k_norm.weight))
        self._activation = activation
        self._bound: tuple[Any, ...] | None = None

    def forward(
        self, hidden: torch.Tensor, angles: Angles, mask: torch.Tensor | None, cache: TreeCache
    ) -> torch.Tensor:
        """Rows (q, hidden) of the open batch -> (q, hidden). `mask`: as `tree_attention` takes it, packed or None."""
        front = (self._bound or self._bind())[0]
        return self.attend(hidden, rms_norm(hidden, front, self.eps, self._norm_dtype), angles, mask, cache)

    def attend(
        self,
        residual: torch.Tensor,
        inputs: torch.Tensor,
        angles: Angles,
        mask: torch.Tensor | None,
        cache: TreeCache,
    ) -> torch.Tensor:
        """All that follows the norm in front; `inputs` (q, any width) are what attention reads."""
        _, behind, norms, qkv, output, gate_up, down = self._bound or self._bind()
        q, turned, eps, exact = len(inputs), self.heads + self.kv_heads, self.eps, self._norm_dtype
        heads = qkv(inputs).view(q, turned + self.kv_heads, self.head_dim)
        rotated = heads[:, :turned]
        if norms is not None:
            rotated = unit_rms(rotated, eps, exact)
            rotated[:, : self.heads].mul_(norms[0])
            rotated[:, self.heads :].mul_(norms[1])
        rotated = rotate(rotated, *angles)
        keys, values = cache.update(
            rotated[:, self.heads :].transpose(0, 1)[None], heads[:, turned:].transpose(0, 1)[None], self.index
        )
        query = rotated[:, : self.heads].transpose(0, 1)[None]
        attended, _ = tree_attention(self, query, keys, values, mask)
        hidden = output(attended.reshape(q, self.heads * self.head_dim)).add_(residual)
        gate, up = gate_up(rms_norm(hidden, behind, eps, exact)).chunk(2, dim=-1)
        result: torch.Tensor = down(self._activation(gate).mul_(up)).add_(hidden)
        return result

    def _bind(self) -> tuple[Any, ...]:
        """Norms and products, found once: to look a module's parts up and call them takes as long as small products."""
        norms = None if self.head_norms is None else tuple(self.head_norms)
        products = [product(getattr(self, name)) for name in ("qkv", "output", "gate_up", "down")]
        self._bound = (self.input_norm, self.mlp_norm, norms, *products)
        return self._bound


class LeanRotary:
    """Angles of positions in the form that `LeanLayer` takes, looked up where they depend on the position alone.

    `rotary` is transformers' module, which makes them. A segment's positions are near each other, and a session passes
    each once; so blocks of positions are made when they are asked for, and only the newest ones are kept.
    """

    def __init__(self, rotary: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._rotary = rotary
        self._probe = torch.empty(0, dtype=dtype, device=device)
        self._static = getattr(rotary, "rope_type", None) in STATIC_ROPE
        self._block = functools.lru_cache(ANGLE_BLOCKS)(self._make_block)

    def __call__(self, positions: IntArray) -> Angles:
        """positions (q,)"""
        number = int(positions[0]) // ANGLE_BLOCK
        rows = positions - number * ANGLE_BLOCK
        # A power of two: no bit of any row beyond it, nor a sign, and all are in that block.
        if self._static and 0 <= int(np.bitwise_or.reduce(rows)) < ANGLE_BLOCK:
            pairs = self._block(number).index_select(0, torch.from_numpy(rows).to(self._probe.device))
        else:
            pairs = self._make(torch.from_numpy(positions))
        cosine, sine = pairs.unbind(1)
        return cosine, sine

    def _make_block(self, number: int) -> torch.Tensor:
        return self._make(torch.arange(number * ANGLE_BLOCK, (number + 1) * ANGLE_BLOCK))

    def _make(self, positions: torch.Tensor) -> torch.Tensor:
        """int64 positions (q,) -> (q, 2, 1, head_dim)"""
        cosine, sine = self._rotary(self._probe, positions[None].to(self._probe.device))
        pairs = torch.stack((cosine[0], sine[0]), dim=1).unsqueeze(2)
        pairs[:, 1, :, : pairs.shape[-1] // 2].neg_()
        return pairs


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As Llama's: (..., n) and (n,) -> (..., n); the weight comes after the way back from `dtype`."""
    if hidden.dtype == dtype:
        return functional.rms_norm(hidden, weight.shape, weight, eps)
    return unit_rms(hidden, eps, dtype).mul_(weight)


def unit_rms(hidden: torch.Tensor, eps: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(..., n) -> (..., n) over its root mean square, which is taken in `dtype`; a new tensor.

    transformers takes that of its models in float32, whatever theirs is.
    """
    exact = hidden.to(dtype)
    scale = exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (exact * scale).to(hidden.dtype)


def rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding over halves (arXiv:2104.09864, in the order of Llama's checkpoints).

    heads (q, heads, head_dim); cosine and sine as in `Angles`.
    """
    halves = heads.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(heads * cosine, halves, sine)


def adopt(layers: nn.ModuleList, first: int, end: int, settle: Callable[[LeanLayer], object] = lambda _: None) -> bool:
    """Put lean layers in place of `layers[first:end]`; False, and nothing done, if one of them is not known.

    Each is given to `settle` before the next one is made: so no more than one is held twice.
    """
    if not all(_known(layers[index]) for index in range(first, end)):
        return False
    for index in range(first, end):
        layer: Any = layers[index]
        norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        eps = float(layer.input_layernorm.variance_epsilon)
        lean = LeanLayer(layer.self_attn, layer.mlp, *norms, index=index, eps=eps).eval()
        layers[index] = lean
        del layer
        settle(lean)
    return True


def _known(layer: Any) -> bool:
    """Whether `layer` and its parts are exactly what one of `LEAN` makes, with SiLU.

    Only transformers' very own classes: a subclass may compute anything.
    """
    module, name = type(layer).__module__, type(layer).__qualname__
    family = name.removesuffix("DecoderLayer")
    if family not in LEAN.values() or module != f"transformers.models.{family.lower()}.modeling_{family.lower()}":
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if hasattr(attention, "q_norm"):
        norms += [attention.q_norm, attention.k_norm]
    kinds = [(attention, "Attention"), (mlp, "MLP"), *((norm, "RMSNorm") for norm in norms)]
    linears = (*(getattr(attention, f"{part}_proj") for part in "qkvo"), mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        all((type(part).__module__, type(part).__qualname__) == (module, family + kind) for part, kind in kinds)
        and all(type(linear) is nn.Linear for linear in linears)
        and len({norm.variance_epsilon for norm in norms}) == 1
        and attention.config.hidden_act in ("silu", "swish")
        and attention.scaling == attention.head_dim**-0.5
    )


def _join(parts: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer whose outputs are those of `parts`, side by side."""
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    return joined
