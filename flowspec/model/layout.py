"""How large the parts of a model are, how to share them among stages, and what a stage will hold. Loads nothing."""

from __future__ import annotations

import copy
import platform
import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from flowspec.errors import ModelError

if TYPE_CHECKING:
    from flowspec.model.weights import Checkpoint

LEAN: Final = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Architectures whose layers are replaced (see `lean`): `model_type` -> how the names of their classes begin."""
LAYER: Final = re.compile(r"^model\.layers\.(\d+)\.")
"""How the name of a layer's tensor begins."""
DTYPE_BYTES: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
X86: Final = ("x86_64", "amd64")
"""What `platform.machine` calls processors for which torch has products with float16 weights."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    layers: tuple[int, ...]
    embedding: int
    norm: int
    head: int
    """Of the LM head; as large as the embedding where the two are tied."""
    tied: bool

    def of(self, first: int, end: int) -> int:
        """What layers [first, end) weigh when stages are shared out: norm and head count, the embedding does not."""
        return sum(self.layers[first:end]) + (self.norm + self.head if end == len(self.layers) else 0)


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Bytes that a stage will hold: weights once, `row` for every cache row."""

    weights: int
    row: int
    files: tuple[str, ...]
    """Names of the files that it will open."""


def count_parameters(checkpoint: Checkpoint) -> Parameters:
    """From the headers when every file is here, else from the config alone; both give the same numbers."""
    if all((checkpoint.path / file).is_file() for file in set(checkpoint.files.values())):
        sizes = {name: prod(checkpoint.stored(name).shape) for name in checkpoint.files}
    else:
        sizes = _sizes_from_config(checkpoint)
    layers = [0] * checkpoint.layer_count
    for name, size in sizes.items():
        layer = LAYER.match(name)
        if layer is not None and int(layer.group(1)) < len(layers):
            layers[int(layer.group(1))] += size
    if 0 in layers:
        raise ModelError(
            f"{checkpoint.path}: layer {layers.index(0)} of {len(layers)} has no tensors",
            hint="the checkpoint is incomplete; fetch it again",
        )
    embedding = sizes.get("model.embed_tokens.weight", 0)
    head = embedding if checkpoint.tied else sizes.get("lm_head.weight", 0)
    norm = sum(size for name, size in sizes.items() if name.startswith("model.norm."))
    return Parameters(tuple(layers), embedding, norm, head, checkpoint.tied)


def _sizes_from_config(checkpoint: Checkpoint) -> dict[str, int]:
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.config)
    config.tie_word_embeddings = checkpoint.tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def split(parameters: Parameters, stages: int) -> tuple[range, ...]:
    """Contiguous, non-empty ranges: least possible largest stage, and among those the most even ones."""
    count = len(parameters.layers)
    if not 1 <= stages <= count:
        raise ModelError(
            f"{count} layers cannot be shared among {stages} stages",
            hint="every stage holds at least one layer: use fewer stages",
        )
    weight = {(a, b): parameters.of(a, b) for a in range(count) for b in range(a + 1, count + 1)}
    largest = _least(weight, stages, count, lambda load, rest: max(load, rest), None)[0]
    cuts = _least(weight, stages, count, lambda load, rest: load * load + rest, largest)[1]
    return tuple(range(a, b) for a, b in zip((0, *cuts), (*cuts, count), strict=True))


def _least(
    weight: dict[tuple[int, int], int], stages: int, count: int, combine: Any, limit: int | None
) -> tuple[int, tuple[int, ...]]:
    """Least combined cost of `stages` ranges over the layers, and where they are cut; no range above `limit`."""
    best: dict[int, tuple[int, tuple[int, ...]]] = {count: (0, ())}
    for left in range(1, stages + 1):
        reached: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start in range(stages - left, count - left + 1):
            options = []
            for end, (cost, cuts) in best.items():
                if end > start and (limit is None or weight[start, end] <= limit):
                    options.append((combine(weight[start, end], cost), cuts if end == count else (end, *cuts)))
            if options:
                reached[start] = min(options)
        best = reached
    return best[0]


def block_bytes(checkpoint: Checkpoint, first: int, end: int, dtype: str, device: str = "cpu") -> BlockBytes:
    """What `LayerBlock.load` of layers [first, end) in `dtype` will hold, from headers or config alone.

    On a machine like this one. Small matrices and norms of a checkpoint that stays in 16 bits are wider than counted.
    """
    if not 0 <= first < end <= checkpoint.layer_count:
        raise ModelError(f"{checkpoint.path} has {checkpoint.layer_count} layers, a stage cannot hold [{first}, {end})")
    parameters, size = checkpoint.parameters, weight_bytes(checkpoint, first, end, dtype, device)
    head_size = size if dtype == "float32" else max(size, DTYPE_BYTES["float32"])
    weights = sum(parameters.layers[first:end]) * size
    if first == 0:
        weights += parameters.embedding * size
    if end == checkpoint.layer_count:
        shared = first == 0 and parameters.tied and head_size == DTYPE_BYTES[dtype]
        weights += (parameters.norm + (0 if shared else parameters.head)) * head_size
    row = (end - first) * 2 * prod(row_shape(checkpoint.config)) * DTYPE_BYTES[dtype]
    return BlockBytes(weights, row, checkpoint.needed_files(first, end))


def weight_bytes(checkpoint: Checkpoint, first: int, end: int, dtype: str, device: str = "cpu") -> int:
    """Bytes of a weight of layers [first, end) in a stage that computes in `dtype` on `device`, on a machine like this.

    What is stored in 16 bits stays so in float32, where the processor multiplies it (see `half_linear`).
    """
    if device == "auto":
        from flowspec.model.device import find_device  # with torch, which headers need not wait for

        device = find_device(device)
    narrow = (
        dtype == "float32"
        and device == "cpu"
        and platform.machine().lower() in X86
        and checkpoint.model_type in LEAN
        and checkpoint.stored_dtype(first, end) in ("BF16", "F16")
    )
    return 2 if narrow else DTYPE_BYTES[dtype]


def row_shape(config: Any) -> tuple[int, int]:
    """(key/value heads, head dimension) of a config."""
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(getattr(config, "num_key_value_heads", None) or heads), head_dim
