"""A draft head: a small network that continues the target's own hidden states, one token at a time.

What EAGLE-1/2 and EAGLE-3 heads have in common, with every step exposed that training needs on its own. A head knows
rows, masks and weights; what becomes of its logits, and which tokens it is asked about, is its drafter's to say.

Rows follow EAGLE (arXiv:2401.15077, 2406.16858, 2503.01840): the row of the token t_i at position i >= 1 takes the
embedding of t_i and the state of position i - 1, which is `project` of the target's features where they are known and
the output of the parent's row otherwise. Its output predicts t_(i+1) and is the state that its children take. The token
at position 0 has no row, so a row's cache position, which RoPE sees, is i - 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import nn

from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_layer import HeadLayer, PositionEmbeddings, Rotary, exact_dtype
from flowspec.errors import InvariantViolation
from flowspec.model import heap
from flowspec.model.arrangement import arrange, bytes_of, detach_from_files
from flowspec.model.attention import additive_mask
from flowspec.model.cache import CacheShape, TreeCache
from flowspec.model.lean import LeanLayer, LeanRotary
from flowspec.model.rows import Batch


class DraftHead(nn.Module, ABC):
    """Layers and embedding; subclasses add what comes before the first layer and after the last.

    The names in `state_dict()` are those of the EAGLE layout of its kind, with `layers.0` also for EAGLE-3. Made on
    whatever device and dtype torch creates tensors (`torch.device("meta")` for shapes alone); `head_files.load_head`
    reads weights. Training uses the steps one by one; drafting calls `settle` once, then `forward` under
    `torch.inference_mode()`: nothing here turns gradients off.
    """

    layers: nn.ModuleList
    embed_tokens: nn.Embedding
    lm_head: nn.Linear
    target_tokens: torch.Tensor | None
    """Draft vocabulary id -> the target's token id, int64 (draft_vocab,); None: they are the same."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.kind: str = config.kind
        self.taps: tuple[int, ...] = config.taps
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HeadLayer(config, index) for index in range(config.layer_count))
        self._rotary = Rotary(config)
        self._lean = nn.ModuleList()
        self._angles: LeanRotary | None = None
        self.register_buffer("target_tokens", None, persistent=False)

    # ---- what it is

    @property
    def feature_size(self) -> int:
        """Columns of the features of one position: the target's hidden size, once per tap."""
        return len(self.taps) * self.config.target_hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, those copied from the target included; storage that two of them share counts once."""
        return bytes_of([self]) + sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def sharpness(self) -> float:
        """How far apart its scores are, as a multiple of its logits."""
        return self.config.sharpness

    @property
    def layer_count(self) -> int:
        return self.config.layer_count

    @property
    def dtype(self) -> torch.dtype:
        """Of embedding, layers and states; the LM head is kept in float32 at least."""
        return self.embed_tokens.weight.dtype

    @property
    def logit_dtype(self) -> torch.dtype:
        """Of the LM head and the norm in front of it."""
        return exact_dtype(self.dtype)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def stack(self) -> list[HeadLayer]:
        """The layers, first to last; usually one."""
        return [cast(HeadLayer, layer) for layer in self.layers]

    # ---- the steps, in order

    @abstractmethod
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """The states that the target's features give: (..., feature_size) -> (..., hidden), in the head's dtype."""

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Target token ids (...) -> (..., hidden)."""
        found: torch.Tensor = self.embed_tokens(tokens.to(self.device))
        return found

    @abstractmethod
    def inputs(self, embeds: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All that comes before q, k and v of the first layer: two (..., hidden) -> its residual and attention input.

        The residual is (..., hidden); the attention input (..., hidden) for EAGLE-1/2 and (..., 2 hidden) for EAGLE-3.
        """

    def rotary(self, positions: torch.Tensor) -> PositionEmbeddings:
        """Cosine and sine for RoPE, each (..., n, head_dim), of the cache positions (..., n)."""
        return self._rotary(positions, self.dtype)

    @abstractmethod
    def next_states(self, hidden: torch.Tensor) -> torch.Tensor:
        """What children take as state, from the last layer's output: (..., hidden) -> (..., hidden)."""

    @abstractmethod
    def output(self, states: torch.Tensor) -> torch.Tensor:
        """Logits over the draft vocabulary from what `forward` or `next_states` returned, float32 or float64.

        (..., hidden) -> (..., draft_vocab). Column j is the target's token `target_tokens[j]`, or j where that is None.
        """

    # ---- under a cache

    def new_cache(self, row_limit: int) -> TreeCache:
        """An empty cache for a session of at most `row_limit` rows."""
        config = self.config
        shape = CacheShape(0, self.layer_count, config.kv_heads, config.head_dim, self.dtype, self.device)
        return TreeCache(shape, row_limit)

    def settle(self) -> None:
        """From now on this head is for `forward`: no training and no `state_dict`, and on a CPU its weights lie as this
        one multiplies few rows fastest. Called again, it does nothing."""
        if self._angles is not None:
            return
        self._lean.extend(layer.lean() for layer in self.stack)
        for layer in self.stack:
            del layer.self_attn, layer.mlp
        if self.device.type == "cpu":
            arrange([self], self.dtype, pack=True)
            detach_from_files([self])
            heap.trim()
        self._angles = self._rotary.lean(self.dtype, self.device)

    def forward(self, embeds: torch.Tensor, states: torch.Tensor, cache: TreeCache, batch: Batch) -> torch.Tensor:
        """Run the open `batch` of `cache`: embeddings and states, each (n, hidden) -> the next states (n, hidden).

        Only after `settle`.
        """
        if self._angles is None:
            raise InvariantViolation("a head runs under a cache when its weights are settled")
        angles = self._angles(batch.positions)
        mask = additive_mask(cache, self.config.groups, self.dtype, self.device)
        residual, attention_input = self.inputs(embeds.to(self.dtype), states.to(self.dtype))
        first, *others = cast(list[LeanLayer], list(self._lean))
        hidden = first.attend(residual, attention_input, angles, mask, cache)
        for layer in others:
            hidden = layer(hidden, angles, mask, cache)
        return self.next_states(hidden)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, taps={self.taps}"

    def __call__(self, *arguments: Any, **named: Any) -> torch.Tensor:
        result: torch.Tensor = super().__call__(*arguments, **named)
        return result
