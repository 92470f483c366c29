"""What a draft head is made of: sizes, options and conventions, in one form whatever layout named them.

Pure numbers: no torch, no files. `head_settings` reads them from a checkpoint's folder; training makes its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flowspec.model.sampling import SHARPNESS

KINDS: Final = {"eagle": "an EAGLE-1/2 head", "eagle3": "an EAGLE-3 head"}
"""Name of a kind in topologies and folders -> how it is spoken of."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Sizes count elements. What a kind does not have stays at its default."""

    kind: str  # "eagle" | "eagle3"
    hidden_size: int
    target_hidden_size: int
    vocab_size: int  # the target's
    draft_vocab_size: int  # rows of the LM head; `vocab_size` for EAGLE-1/2
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    taps: tuple[int, ...]  # see `taps`
    layer_count: int = 1
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    context: int = 2048  # positions that RoPE was made for; only scaled kinds of RoPE read it
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    """As transformers' `rope_parameters`."""
    attention_bias: bool = False  # of q, k and v
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    fc_bias: bool = False
    qk_norm: bool = False
    """RMSNorm of q and k per attention head, as in Qwen3."""
    norm_before_fc: bool = False
    """EAGLE-3: one RMSNorm over the concatenated taps (`input_norm`)."""
    fc_norm: bool = False
    """EAGLE-3: one RMSNorm per tap before they are concatenated (EAGLE 3.1)."""
    norm_before_residual: bool = False
    """EAGLE-3: the residual of the first layer is the normed state, not the state."""
    norm_output: bool = False
    """EAGLE-3: the next state is the output *after* the head's own norm (EAGLE 3.1)."""
    sharpness: float = SHARPNESS
    """How far apart the head's scores are, as a multiple of its logits (`flowspec.model.sampling`)."""
    own_embedding: bool = False
    """The embedding belongs to the head and is stored with it; else it is the target's."""

    @property
    def groups(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads
