"""Every tensor of every published head is accounted for: names and shapes, without a weight on the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_files import build_head, check_tensors, read_config
from flowspec.drafting.head_folder import HeadFolder
from flowspec.drafting.head_settings import TargetShape
from flowspec.errors import ModelError
from flowspec.wire.messages import FINAL
from tests.drafting import head_folders as folders

LLAMA2 = {"hidden": 4096, "middle": 11008, "heads": 32, "kv_heads": 32, "head_dim": 128}
LLAMA3 = {"hidden": 4096, "middle": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128}
QWEN2 = {"hidden": 3584, "middle": 18944, "heads": 28, "kv_heads": 4, "head_dim": 128}
QWEN3 = {"hidden": 4096, "middle": 12288, "heads": 32, "kv_heads": 8, "head_dim": 128}


def config_of(sizes: dict[str, int], vocabulary: int, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["middle"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "num_hidden_layers": 1,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    } | changes


def speculators_of(decoder: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 32000,
        "transformer_layer_config": decoder,
    } | changes


def mapped(draft: int, vocabulary: int) -> folders.Shapes:
    return {"d2t": (draft,), "t2d": (vocabulary,)}


def eagle3_of(sizes: dict[str, int], vocabulary: int, prefix: str = "midlayer.") -> folders.Shapes:
    return folders.eagle3_shapes(prefix, draft_vocabulary=32000, **sizes) | mapped(32000, vocabulary)


def norms_of(taps: int, hidden: int) -> folders.Shapes:
    return {f"fc_norm.{index}.weight": (hidden,) for index in range(taps)}


Published = tuple[dict[str, Any], folders.Shapes, int, int, int, tuple[int, ...]]
"""config.json, tensors, and of the target: hidden size, vocabulary, layers; and the taps that come out."""

PUBLISHED: dict[str, Published] = {
    "EAGLE for Llama-2-7B": (
        config_of(LLAMA2, 32000),
        folders.eagle_shapes(vocabulary=32000, **LLAMA2),
        *(4096, 32000, 32, (FINAL,)),
    ),
    "EAGLE for Vicuna-7B": (
        config_of(LLAMA2, 32000, bias=True),
        folders.eagle_shapes(vocabulary=32000, **LLAMA2),
        *(4096, 32000, 32, (FINAL,)),
    ),
    "EAGLE for Llama-3-8B": (
        config_of(LLAMA3, 128256, bias=False, rope_theta=500000.0),
        folders.eagle_shapes(vocabulary=128256, fc_bias=False, **LLAMA3),
        *(4096, 128256, 32, (FINAL,)),
    ),
    "EAGLE for Qwen2-7B": (
        config_of(QWEN2, 152064, qkv_bias=True, rope_theta=1000000.0),
        folders.eagle_shapes(vocabulary=152064, bias=True, **QWEN2),
        *(3584, 152064, 28, (FINAL,)),
    ),
    "EAGLE-3 for Vicuna-7B": (
        config_of(LLAMA2, 32000, draft_vocab_size=32000),
        folders.eagle3_shapes(draft_vocabulary=32000, **LLAMA2),
        *(4096, 32000, 32, (2, 16, 29)),
    ),
    "EAGLE-3 for Llama-3-8B": (
        config_of(LLAMA3, 128256, draft_vocab_size=32000, rope_theta=500000.0),
        eagle3_of(LLAMA3, 128256),
        *(4096, 128256, 32, (2, 16, 29)),
    ),
    "EAGLE-3 for Qwen3-8B": (
        config_of(QWEN3, 151936, draft_vocab_size=32000, head_dim=128, architectures=["LlamaForCausalLMEagle3"]),
        eagle3_of(QWEN3, 151936),
        *(4096, 151936, 36, (2, 18, 33)),
    ),
    "SpecForge for Llama-3-8B": (
        config_of(
            LLAMA3,
            128256,
            draft_vocab_size=32000,
            rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 8192},
            rope_theta=500000.0,
            eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 15, 28], "use_aux_hidden_state": True},
        ),
        eagle3_of(LLAMA3, 128256),
        *(4096, 128256, 32, (2, 16, 29)),
    ),
    "speculators for Llama-3-8B": (
        # transformers' defaults are left out of the nested config.
        speculators_of(
            {"model_type": "llama", "intermediate_size": 14336, "num_key_value_heads": 8}
            | {"vocab_size": 128256, "num_hidden_layers": 1},
            norm_before_residual=True,
            eagle_aux_hidden_state_layer_ids=[2, 16, 29],
        ),
        eagle3_of(LLAMA3, 128256, "layers.0.") | {"embed_tokens.weight": (128256, 4096)},
        *(4096, 128256, 32, (2, 16, 29)),
    ),
    "speculators for Qwen3-8B": (
        speculators_of(config_of(QWEN3, 151936, model_type="qwen3", head_dim=128)),
        eagle3_of(QWEN3, 151936, "layers.0.")
        | {f"layers.0.self_attn.{part}_norm.weight": (128,) for part in "qk"}
        | {"verifier_norm.weight": (4096,)},
        *(4096, 151936, 36, (2, 18, 33)),
    ),
    "EAGLE 3.1 for Qwen3-8B": (
        config_of(QWEN3, 151936, draft_vocab_size=32000, head_dim=128, fc_norm=True, norm_output=True),
        eagle3_of(QWEN3, 151936) | norms_of(3, 4096),
        *(4096, 151936, 36, (2, 18, 33)),
    ),
    "EAGLE-3 of 32 heads x 128 on 2048": (
        config_of(QWEN3 | {"hidden": 2048, "kv_heads": 4}, 151936, draft_vocab_size=32000, head_dim=128),
        eagle3_of(QWEN3 | {"hidden": 2048, "kv_heads": 4}, 151936),
        *(2048, 151936, 48, (2, 24, 45)),
    ),
}
DTYPES = {"d2t": "I64", "t2d": "BOOL"}


def read_published(folder: Path, name: str, shapes: folders.Shapes | None = None) -> HeadConfig:
    config, published, hidden, vocabulary, layers, _ = PUBLISHED[name]
    written = HeadFolder(folders.write_header(folder, config, published if shapes is None else shapes, DTYPES))
    found = read_config(written, TargetShape(Path("target"), hidden, vocabulary, layers))
    check_tensors(written, found)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_head_is_accounted_for(name: str, tmp_path: Path) -> None:
    config = read_published(tmp_path, name)
    assert config.taps == PUBLISHED[name][5]
    with torch.device("meta"):
        head = build_head(config)
    stored = {key for key in PUBLISHED[name][1] if key not in ("d2t", "t2d", "verifier_norm.weight")}
    # What the module has and the folder has not is the target's.
    missing = set(head.state_dict()) - {key.replace("midlayer.", "layers.0.") for key in stored}
    assert missing <= {"embed_tokens.weight", "lm_head.weight"}
    assert head.weight_bytes > 1e8


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tensor_too_few_or_too_many_is_named(name: str, tmp_path: Path) -> None:
    shapes = PUBLISHED[name][1]
    optional = {"embed_tokens.weight", "verifier_norm.weight"}
    for lacking in sorted(shapes.keys() - optional):
        with pytest.raises(ModelError, match=re.escape(lacking.replace("midlayer.", "layers.0."))):
            read_published(tmp_path, name, {key: shape for key, shape in shapes.items() if key != lacking})
    for surplus in ("midlayer.mlp.extra.weight", "layers.7.mlp.up_proj.weight"):
        with pytest.raises(ModelError, match=re.escape(surplus)):
            read_published(tmp_path, name, shapes | {surplus: (4,)})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_shape_is_told_with_both(name: str, tmp_path: Path) -> None:
    for tensor, shape in PUBLISHED[name][1].items():
        if tensor in ("d2t", "t2d", "verifier_norm.weight"):
            continue
        wrong = (shape[0] + 1, *shape[1:])
        with pytest.raises(ModelError) as caught:
            read_published(tmp_path, name, PUBLISHED[name][1] | {tensor: wrong})
        for part in (tensor, str(wrong), str(shape)):
            assert part in str(caught.value)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    shapes = PUBLISHED["EAGLE for Llama-2-7B"][1]
    config = PUBLISHED["EAGLE for Llama-2-7B"][0]
    folder = HeadFolder(folders.write_header(tmp_path, config, shapes, {"fc.weight": "I8"}))
    found = read_config(folder, TargetShape(Path("target"), 4096, 32000, 32))
    with pytest.raises(ModelError, match=r"fc\.weight is stored as I8"):
        check_tensors(folder, found)
