"""Lean layers compute what transformers' own do, in every dtype, and only where they are known to."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from flowspec.model import block as block_module
from flowspec.model import lean as lean_module
from flowspec.model.lean import LeanLayer, LeanRotary, adopt, rms_norm
from tests.checkpoints import FAMILIES
from tests.model.conftest import WriteCheckpoint
from tests.model.running import Blocks, chain

LEAN = ("llama", "llama3-rope", "qwen2", "qwen3", "mistral")
PROMPT = [(7 * i) % 300 + 2 for i in range(23)]
TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 0.06, "float16": 0.01}
"""Of the largest hidden state."""


def config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, **changes}, attn_implementation="flowspec")


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_layers_stand_where_a_layer_is_exactly_of_llamas_shape(checkpoint: WriteCheckpoint, family: str) -> None:
    block = Blocks(checkpoint(family), (0, 3)).blocks[0]
    assert {isinstance(layer, LeanLayer) for layer in block._layers} == {family in LEAN}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("family", "settings"),
    [*((family, {}) for family in LEAN), ("qwen3", {"sliding_window": 5}), ("mistral", {"sliding_window": 5})],
)
def test_lean_layers_give_what_those_of_transformers_give(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, family: str, settings: dict[str, Any], dtype: str
) -> None:
    path = checkpoint(family, **settings)
    outputs = []
    for lean in (True, False):
        if not lean:
            monkeypatch.setattr(block_module, "adopt", lambda layers, first, end, settle: False)
        blocks = Blocks(path, (0, 2), dtype=dtype)
        block, cache = blocks.blocks[0], blocks.caches[0]
        assert isinstance(block._layers[0], LeanLayer) == lean
        rows = []
        for draft in (chain(PROMPT), chain([5], 23), chain([9, 8, 7, 6], 24, 22), chain([3, 3], 28, 25)):
            hidden = block.forward(torch.tensor(draft.tokens), cache, cache.begin(draft))
            assert hidden is not None
            cache.commit(22)
            rows.append(hidden.double())
        outputs.append(torch.cat(rows))
    assert float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_those_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(64, generator=generator).to(dtype)
    hidden = (torch.randn(9, 64, generator=generator) * 3).to(dtype)
    kept = hidden.clone()
    assert torch.equal(rms_norm(hidden, norm.weight.data, 1e-5), norm(hidden))
    assert torch.equal(hidden, kept)


class Other(LlamaDecoderLayer):
    """Might compute anything."""


class OtherLinear(nn.Linear):
    """As well."""


def with_other_linear() -> nn.Module:
    layer = LlamaDecoderLayer(config(), 0)
    layer.mlp.up_proj = OtherLinear(32, 48, bias=False)
    return layer


@pytest.mark.parametrize(
    "layer",
    [Other(config(), 0), LlamaDecoderLayer(config(hidden_act="gelu"), 0), with_other_linear(), nn.Identity()],
    ids=["subclass", "activation", "projection", "no layer"],
)
def test_what_is_not_known_stays_as_it_is(layer: nn.Module) -> None:
    layers = nn.ModuleList([LlamaDecoderLayer(config(), 0), layer])
    before = list(layers)
    assert not adopt(layers, 0, 2)
    assert list(layers) == before
    assert adopt(layers, 0, 1)


def test_biases_come_along() -> None:
    layers = nn.ModuleList([LlamaDecoderLayer(config(attention_bias=True, mlp_bias=True), 0)])
    biases = {name: parameter.numel() for name, parameter in layers.named_parameters() if name.endswith("bias")}
    assert adopt(layers, 0, 1)
    joined = {name: parameter.numel() for name, parameter in layers.named_parameters() if name.endswith("bias")}
    assert (sum(biases.values()), len(biases)) == (sum(joined.values()), 7)
    assert len(joined) == 4


ROPES = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_angles_are_those_of_transformers_to_the_bit(rope: dict[str, Any], dtype: torch.dtype) -> None:
    settings = config(rope_parameters={"rope_theta": 10000.0, **rope}, max_position_embeddings=16, head_dim=64)
    angles = LeanRotary(LlamaRotaryEmbedding(settings), dtype, torch.device("cpu"))
    fresh = LlamaRotaryEmbedding(settings)
    for positions in ([0], [3, 4, 4, 9], [254, 255, 256], [2], [131_071], [*range(300)], [255, 3]):
        cosine, sine = angles(np.array(positions))
        expected, turned = fresh(torch.empty(0, dtype=dtype), torch.tensor([positions]))
        assert cosine.dtype == sine.dtype == dtype
        assert torch.equal(cosine[:, 0], expected[0])
        assert torch.equal(sine[:, 0, 32:], turned[0, :, 32:])
        assert torch.equal(sine[:, 0, :32], -turned[0, :, :32])


def test_angles_of_a_long_context_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_module, "ANGLE_BLOCKS", 4)
    angles = LeanRotary(LlamaRotaryEmbedding(config()), torch.float32, torch.device("cpu"))
    made = watch(monkeypatch, angles)
    for position in range(0, 131_072, 64):
        angles(np.array([position, position + 1]))
    assert len(made) == 131_072 // lean_module.ANGLE_BLOCK, "each block once"
    gc.collect()
    assert sum(block() is not None for block in made) == 4


def test_sessions_at_distant_positions_do_not_make_angles_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = LeanRotary(LlamaRotaryEmbedding(config()), torch.float32, torch.device("cpu"))
    made = watch(monkeypatch, angles)
    for offset in range(20):
        for session in range(8):
            angles(np.array([10_000 * session + offset]))
    assert len(made) == 8


def watch(monkeypatch: pytest.MonkeyPatch, angles: LeanRotary) -> list[weakref.ref[torch.Tensor]]:
    """All that `angles` makes from now on."""
    made, make = [], angles._make

    def watched(positions: torch.Tensor) -> torch.Tensor:
        pairs = make(positions)
        made.append(weakref.ref(pairs))
        return pairs

    monkeypatch.setattr(angles, "_make", watched)
    return made
