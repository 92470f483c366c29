"""Folders of random draft heads in every layout that projects write, for a small target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowspec.drafting.head_files import load_head
from flowspec.errors import ModelError
from flowspec.model.weights import Checkpoint

HIDDEN, HEADS, KV_HEADS, MIDDLE, VOCABULARY = 32, 4, 2, 48, 352
DRAFT_VOCABULARY = 96

EAGLE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
EAGLE3: dict[str, Any] = EAGLE | {
    "architectures": ["LlamaForCausalLMEagle3"],
    "draft_vocab_size": DRAFT_VOCABULARY,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 0, 1]},
}
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": DRAFT_VOCABULARY,
    "norm_before_residual": True,
    "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    "transformer_layer_config": {
        key: EAGLE[key] for key in EAGLE.keys() - {"architectures", "hidden_act", "num_hidden_layers"}
    }
    | {"num_hidden_layers": 1},
}

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(
    prefix: str,
    *,
    width: int,
    hidden: int = HIDDEN,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    head_dim: int = HIDDEN // HEADS,
    middle: int = MIDDLE,
    bias: bool = False,
    norms: tuple[str, ...] = (),
) -> Shapes:
    """Tensors of one decoder layer that reads `width` columns."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    shapes: Shapes = {
        f"{prefix}self_attn.q_proj.weight": (queries, width),
        f"{prefix}self_attn.k_proj.weight": (keys, width),
        f"{prefix}self_attn.v_proj.weight": (keys, width),
        f"{prefix}self_attn.o_proj.weight": (hidden, queries),
        f"{prefix}mlp.gate_proj.weight": (middle, hidden),
        f"{prefix}mlp.up_proj.weight": (middle, hidden),
        f"{prefix}mlp.down_proj.weight": (hidden, middle),
        f"{prefix}post_attention_layernorm.weight": (hidden,),
    }
    shapes |= {f"{prefix}{name}.weight": (hidden,) for name in norms}
    if bias:
        for part, size in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{prefix}self_attn.{part}_proj.bias"] = (size,)
    return shapes


def eagle_shapes(*, fc_bias: bool = True, bias: bool = False, embedding: bool = True, **sizes: int) -> Shapes:
    hidden = sizes.get("hidden", HIDDEN)
    vocabulary = sizes.pop("vocabulary", VOCABULARY)
    shapes: Shapes = {"fc.weight": (hidden, 2 * hidden)} | layer_shapes("layers.0.", width=hidden, bias=bias, **sizes)
    if fc_bias:
        shapes["fc.bias"] = (hidden,)
    if embedding:
        shapes["embed_tokens.weight"] = (vocabulary, hidden)
    return shapes


def eagle3_shapes(prefix: str = "midlayer.", *, taps: int = 3, bias: bool = False, **sizes: int) -> Shapes:
    hidden = sizes.get("hidden", HIDDEN)
    target = sizes.pop("target_hidden", hidden)
    draft = sizes.pop("draft_vocabulary", DRAFT_VOCABULARY)
    return {
        "fc.weight": (hidden, taps * target),
        "norm.weight": (hidden,),
        "lm_head.weight": (draft, hidden),
    } | layer_shapes(prefix, width=2 * hidden, bias=bias, norms=("hidden_norm", "input_layernorm"), **sizes)


def random_tensors(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Float64, spread so that every part of the head shows in its output."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn[name] = 1 + 0.2 * values if len(shape) == 1 and "norm" in name else 0.25 * values
    return drawn


def vocabulary_maps(tokens: torch.Tensor, vocabulary: int = VOCABULARY) -> dict[str, torch.Tensor]:
    marks = torch.zeros(vocabulary, dtype=torch.bool)
    marks[tokens] = True
    return {"d2t": tokens - torch.arange(len(tokens)), "t2d": marks}


def draft_tokens(count: int = DRAFT_VOCABULARY, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randperm(vocabulary, generator=torch.Generator().manual_seed(5))[:count].sort().values


def write_head(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    *,
    sidecar: dict[str, Any] | None = None,
    prefix: str = "",
) -> Path:
    """Write a head's folder; `prefix` goes before every tensor's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if sidecar is not None:
        (folder / "flowspec.json").write_text(json.dumps(sidecar))
    save_file({prefix + name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def write_header(folder: Path, config: dict[str, Any], shapes: Shapes, dtypes: dict[str, str] | None = None) -> Path:
    """A head's folder whose weights file is a header and a hole: of any size, and no bytes on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    entries, end = {}, 0
    for name, shape in shapes.items():
        dtype = (dtypes or {}).get(name, "BF16")
        size = torch.Size(shape).numel() * {"BF16": 2, "I64": 8, "BOOL": 1, "I8": 1}[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    return folder


def write_small(
    folder: Path,
    config: dict[str, Any] = EAGLE3,
    shapes: Shapes | None = None,
    sidecar: dict[str, Any] | None = None,
    **more: torch.Tensor,
) -> Path:
    """A small EAGLE-3 head, unless told otherwise."""
    tensors = random_tensors(eagle3_shapes() if shapes is None else shapes)
    maps = vocabulary_maps(draft_tokens()) if "draft_vocab_size" in config else {}
    return write_head(folder, config, tensors | maps | more, sidecar=sidecar)


def refused(folder: Path, target: Checkpoint, *parts: str, **options: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_head(folder, target, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
