"""Layers [first, end) of a Hugging Face causal LM, with the embedding in front and the LM head behind at the ends.

A block reads only its own tensors and runs them for one batch of rows under the cache's masks. It never derives a mask
or a position by itself, knows no session and no neighbour.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.errors import ModelError
from flowspec.model import heap
from flowspec.model.arrangement import arrange, bytes_of, detach_from_files, halves_win, widen
from flowspec.model.attention import additive_mask
from flowspec.model.cache import CacheShape, TreeCache
from flowspec.model.columns import IntArray
from flowspec.model.layout import LEAN, row_shape
from flowspec.model.lean import LeanLayer, LeanRotary, adopt
from flowspec.model.loading import STORED_HALVES, LanguageHead, Progress, TensorReader, load_stage
from flowspec.model.rows import Batch
from flowspec.model.sampling import Sampler
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import FINAL
from flowspec.wire.parameters import SamplingParameters

WINDOWED: Final = ("mistral", "phi3", "qwen3_moe")
"""Architectures with a sliding window in every layer, where the config names one."""
WINDOWED_BY_LAYER: Final = ("qwen2", "qwen3", "ministral")
"""Those with one in the layers that the config calls so. transformers takes a mistral that names kinds of layers for a
ministral."""

Observe = Callable[[int, torch.Tensor], None]
_FamilyAngles = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


class LayerBlock:
    """Made by `load`. Not thread-safe: one forward at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        head: LanguageHead | None,
        first: int,
        end: int,
        dtype: torch.dtype,
    ) -> None:
        config = checkpoint.config
        self.first_layer = first
        self.end_layer = end
        self.is_first = first == 0
        self.layer_count = checkpoint.layer_count
        """Of the whole model."""
        self.is_tail = end == self.layer_count
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        self.context_limit = checkpoint.context_limit
        self.dtype = dtype
        self.device = torch.device(model.device)
        self._embedding = model.model.embed_tokens if self.is_first else None
        self._windows = [_window(config, index) for index in range(first, end)]
        self._head = head
        self._kv_heads, self._head_dim = row_shape(config)
        self._groups = int(config.num_attention_heads) // self._kv_heads
        layers, rotary = [model.model.layers[index] for index in range(first, end)], model.model.rotary_emb
        self._layers: list[Callable[..., torch.Tensor]]
        self._angles: Callable[[IntArray], Any]
        if all(isinstance(layer, LeanLayer) for layer in layers):
            self._layers, self._angles = layers, LeanRotary(rotary, self.dtype, self.device)
        else:
            self._layers = [_FamilyLayer(layer) for layer in layers]
            self._angles = _FamilyRotary(rotary, self.dtype, self.device)
        self.weight_bytes = bytes_of([model, *([head] if head else [])])

    @classmethod
    def load(
        cls,
        model: Path | Checkpoint,
        first: int,
        end: int,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> LayerBlock:
        """Read layers [first, end) of the checkpoint in `model`, in `dtype` ("float32", "bfloat16", ...).

        `progress(bytes read, bytes in all)` is called as it goes, from the threads that read. ModelError says which
        file or tensor is missing, damaged or does not fit.
        """
        checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
        if not 0 <= first < end <= checkpoint.layer_count:
            raise ModelError(
                f"{checkpoint.path} has {checkpoint.layer_count} layers, a stage cannot hold [{first}, {end})"
            )
        checkpoint.fetch(first, end)
        torch_dtype, on_cpu = getattr(torch, dtype), torch.device(device).type == "cpu"
        with TensorReader(checkpoint, first, end, progress) as reader:
            narrow = _narrow(checkpoint, first, end) if on_cpu and torch_dtype == torch.float32 else None
            stage, norm = load_stage(checkpoint, reader, first, end, narrow or torch_dtype)
            head = None
            if end == checkpoint.layer_count:
                shared = stage.model.embed_tokens.weight if first == 0 and checkpoint.tied else None
                head = LanguageHead(reader, norm, shared, torch_dtype, on_cpu)
        settle = functools.partial(_arrange_layer, dtype=torch_dtype) if on_cpu else lambda _: None
        lean = adopt(stage.model.layers, first, end, settle)
        parts = [stage, head] if head else [stage]
        if on_cpu:
            # What transformers' own layers do with their weights is not known, so those stay ordinary ones.
            arranged = [not lean and arrange([stage], torch_dtype)]
            if head is not None:
                arranged.append(arrange([head], head.dtype, pack=True))
            if narrow is not None:
                # Rows of the embedding are widened when they are looked up.
                looked_up = [stage.model.embed_tokens.weight] if lean and first == 0 else []
                for part in parts:
                    widen(part, torch_dtype, looked_up)
            if lean or any(arranged):
                detach_from_files(parts)
            heap.trim()
        for part in parts:
            part.to(device)
        return cls(checkpoint, stage, head, first, end, torch_dtype)

    @property
    def row_bytes(self) -> int:
        """Cache bytes of one row."""
        return self._shape().row_bytes

    def _shape(self) -> CacheShape:
        layers, windows = self.end_layer - self.first_layer, tuple(self._windows)
        return CacheShape(self.first_layer, layers, self._kv_heads, self._head_dim, self.dtype, self.device, windows)

    def new_cache(self, row_limit: int) -> TreeCache:
        """An empty cache for a session of at most `row_limit` rows."""
        return TreeCache(self._shape(), row_limit)

    def taps_here(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Those of `taps` (see `flowspec.wire.messages.FINAL`) that this stage sees, each once."""
        behind = (self.layer_count, FINAL) if self.is_tail else ()
        return tuple(tap for tap in dict.fromkeys(taps) if self.first_layer <= tap < self.end_layer or tap in behind)

    def sampler(self, parameters: SamplingParameters) -> Sampler:
        """What draws the tokens of one session at the tail."""
        return Sampler(parameters, self.vocab_size)

    @torch.inference_mode()
    def forward(
        self,
        inputs: torch.Tensor,
        cache: TreeCache,
        batch: Batch,
        alive: Callable[[], bool] = lambda: True,
        observe: Observe | None = None,
    ) -> torch.Tensor | None:
        """Run the open `batch` of `cache`; returns hidden states (q, hidden) before the final norm.

        inputs: int64 token ids (q,) at the first stage, else hidden states (q, hidden). Between two layers `alive` is
        asked; when it says no, the rest is left out and None returned. `observe` is called with each layer's index and
        input (q, hidden).
        """
        inputs = inputs.to(self.device)
        hidden = (self._embedding(inputs) if self._embedding is not None else inputs).to(self.dtype)
        angles = self._angles(batch.positions)
        masks: dict[int | None, torch.Tensor | None] = {}
        for index, layer in enumerate(self._layers):
            if index and not alive():
                return None
            if observe is not None:
                observe(self.first_layer + index, hidden)
            window = self._windows[index]
            if window not in masks:
                masks[window] = additive_mask(cache, self._groups, self.dtype, self.device, window)
            hidden = layer(hidden, angles, masks[window], cache)
        return hidden

    @torch.inference_mode()
    def normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm alone: (n, hidden) -> (n, hidden), in the block's dtype. Only at the tail."""
        if self._head is None:
            raise ModelError("only the last stage has a final norm")
        normed: torch.Tensor = self._head.norm(hidden.to(self.device, self._head.dtype))
        return normed.to(self.dtype)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head: (n, hidden) -> (n, vocab), float32 or float64. Only at the tail."""
        if self._head is None:
            raise ModelError("only the last stage has an LM head")
        logits: torch.Tensor = self._head(hidden.to(self.device))
        return logits


def _window(config: Any, index: int) -> int | None:
    """Positions that layer `index` may look back (itself included), None for all; as transformers' models read it.

    A window in the config of another architecture means nothing, nor do kinds of layers where all are alike.
    """
    sliding = config.model_type in WINDOWED or (
        config.model_type in WINDOWED_BY_LAYER and config.layer_types[index] == "sliding_attention"
    )
    window = config.sliding_window if sliding else None
    return int(window) if window else None


def _arrange_layer(layer: LeanLayer, dtype: torch.dtype) -> None:
    if arrange([layer], dtype, pack=True):
        heap.trim()


def _narrow(checkpoint: Checkpoint, first: int, end: int) -> torch.dtype | None:
    """In what a block that computes in float32 reads its weights, where they are stored in 16 bits and may stay so.

    Only for families whose layers are replaced: what others do with weights of another dtype is not known.
    """
    stored = STORED_HALVES.get(checkpoint.stored_dtype(first, end) or "")
    return stored if stored is not None and checkpoint.model_type in LEAN and halves_win() else None


class _FamilyLayer:
    """A layer of transformers, called as a lean one is."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(
        self, hidden: torch.Tensor, angles: _FamilyAngles, mask: torch.Tensor | None, cache: TreeCache
    ) -> torch.Tensor:
        positions, embeddings = angles
        output: torch.Tensor = self._layer(
            hidden_states=hidden[None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=embeddings,
        )
        return output[0]


class _FamilyRotary:
    """Positions and what transformers' rotary module makes of them."""

    def __init__(self, rotary: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._rotary = rotary
        self._probe = torch.empty(0, dtype=dtype, device=device)

    def __call__(self, positions: IntArray) -> _FamilyAngles:
        row = torch.from_numpy(positions).to(self._probe.device)[None]
        return row, self._rotary(self._probe, row)
