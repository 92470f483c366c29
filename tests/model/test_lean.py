"""Lean layers compute what transformers' own do, in every dtype, and only where they are known to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from flowspec.model import block as block_module
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


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "dynamic", "factor": 2.0}])
def test_angles_are_those_of_transformers_however_the_table_grows(rope: dict[str, Any]) -> None:
    settings = config(rope_parameters={"rope_theta": 10000.0, **rope}, max_position_embeddings=16)
    angles = LeanRotary(LlamaRotaryEmbedding(settings), torch.float32, torch.device("cpu"))
    fresh = LlamaRotaryEmbedding(settings)
    for positions in ([0], [3, 4, 4, 9], [40, 41], [2]):
        cosine, sine = angles(torch.tensor(positions), max(positions) + 1)
        expected, turned = fresh(torch.empty(0), torch.tensor([positions]))
        assert torch.equal(cosine[:, 0], expected[0])
        assert torch.equal(sine[:, 0, 4:], turned[0, :, 4:])
        assert torch.equal(sine[:, 0, :4], -turned[0, :, :4])
