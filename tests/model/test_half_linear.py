"""Weights in float16 give the products of the float32 weights that they came from, and are taken only without loss."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from flowspec.model import arrangement, half_linear
from flowspec.model import block as block_module
from flowspec.model.arrangement import Order, bytes_of
from flowspec.model.block import LayerBlock
from flowspec.model.half_linear import CHECKED_AT_ONCE, HalfLinear, half_scale
from flowspec.model.layout import block_bytes
from flowspec.model.loading import TensorReader
from flowspec.model.weights import Checkpoint
from tests.model.conftest import WriteCheckpoint
from tests.model.running import Blocks

LAYERS = 2
EPS = 1e-6


def multiplies() -> bool:
    """Whether this processor has such products."""
    try:
        HalfLinear(torch.ones(8, 8), None, 1.0)(torch.ones(1, 8))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


needs_products = pytest.mark.skipif(not multiplies(), reason="this processor multiplies no float16 weights")


def stored_in(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """float32 weights as they come from a checkpoint in `dtype`."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
def test_weights_of_16_bits_lose_nothing(dtype: torch.dtype, size: float) -> None:
    weight = (stored_in(torch.bfloat16, 64, 48) * size).to(dtype).float()
    scale = half_scale(weight)
    assert scale is not None
    assert math.frexp(scale)[0] == 0.5, "a power of two"
    scaled = weight * scale
    assert torch.equal(scaled.half().float() / scale, weight)
    assert float(scaled.abs().max()) < 65504


def test_weights_that_would_lose_something_are_not_taken() -> None:
    whole = CHECKED_AT_ONCE // 64
    late = torch.ones(whole + 8, 64)
    late[-1, -1] = 1.0 + 2.0**-20
    wide = torch.ones(8, 8)
    wide[3, 3] = 2.0**-60
    broken = torch.ones(8, 8)
    broken[0, 0] = math.nan
    endless = torch.ones(8, 8)
    endless[0, 0] = math.inf
    tiny = torch.full((8, 8), 2.0**-120)
    for weight in (late, wide, broken, endless, tiny, torch.rand(8, 8), torch.ones(8, 8).double(), torch.ones(0, 8)):
        assert half_scale(weight) is None


def test_the_least_and_the_largest_weights_of_a_matrix_count() -> None:
    weight = torch.ones(8, 8)
    weight[3, 3] = 2.0**-30
    assert half_scale(weight) is not None
    assert half_scale(torch.zeros(8, 8)) is not None


@needs_products
@pytest.mark.parametrize("biased", [False, True])
def test_the_products_are_those_of_the_weights(biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = stored_in(torch.bfloat16, 48, 32)
    bias = torch.randn(48, generator=generator) if biased else None
    scale = half_scale(weight)
    assert scale is not None
    linear = HalfLinear(weight, bias, scale)
    assert linear.weight_bytes == 48 * 32 * 2 + (48 * 4 if biased else 0) == bytes_of([linear])
    for shape in ((0, 32), (1, 32), (2, 32), (5, 32), (70, 32), (2, 3, 32)):
        inputs = torch.randn(shape, generator=generator)
        kept = inputs.clone()
        torch.testing.assert_close(linear(inputs), functional.linear(inputs, weight, bias))
        assert torch.equal(inputs, kept)


@needs_products
@pytest.mark.parametrize("biased", [False, True])
def test_weights_are_packed_a_block_after_the_other_and_give_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, biased: bool
) -> None:
    weight, inputs = stored_in(torch.bfloat16, 40, 32).bfloat16(), torch.randn(3, 32)
    bias = torch.randn(40) if biased else None
    scale = half_scale(weight)
    assert scale is not None
    whole = HalfLinear(weight, bias, scale)(inputs)
    packed, prepack = [], torch.ops.quantized.linear_prepack_fp16

    def watched(rows: torch.Tensor, bias: torch.Tensor | None) -> object:
        packed.append(tuple(rows.shape))
        return prepack(rows, bias)

    monkeypatch.setattr(torch.ops.quantized, "linear_prepack_fp16", watched)
    monkeypatch.setattr(half_linear, "PACKED_AT_ONCE", 16)
    linear = HalfLinear(weight, bias, scale)
    assert packed == [(16, 32), (16, 32), (8, 32)], "no more than so much is in float32 at once"
    assert torch.equal(linear(inputs), whole)
    assert linear(inputs[None]).shape == (1, 3, 40)


@needs_products
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False)])
def test_a_block_of_a_16_bit_checkpoint_computes_the_same_with_about_half_the_bytes(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, family: str, tied: bool
) -> None:
    model = checkpoint(family, layers=LAYERS, tied=tied, dtype="bfloat16")
    logits, held, tokens = [], [], [5, 9, 33, 40, 7, 12]
    for halves in (False, True):
        for module in (arrangement, block_module):
            monkeypatch.setattr(module, "halves_win", lambda wins=halves: wins)
        monkeypatch.setattr(arrangement, "SMALLEST_HALF", 0)
        blocks = Blocks(model, (0, 1, LAYERS), dtype="float32")
        held.append([block.weight_bytes for block in blocks.blocks])
        logits.append(torch.cat([blocks.fresh().run_chain(tokens, chunk) for chunk in (1, 2, 6)]))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    counted = []
    for machine in ("riscv64", "x86_64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        counted.append([block_bytes(Checkpoint(model), *cut, "float32").weights for cut in ((0, 1), (1, LAYERS))])
    assert held[0] == counted[0]
    assert held[1] == pytest.approx(counted[1], rel=0.02), "but for norms and biases"
    assert counted[1] == [whole // 2 for whole in counted[0]]


@pytest.mark.parametrize("halves", [False, pytest.param(True, marks=needs_products)])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_head_of_16_bits_is_read_as_it_is_stored_and_computes_the_same(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, dtype: str, tied: bool, order: Order, halves: bool
) -> None:
    model = checkpoint(layers=LAYERS, tied=tied, dtype="bfloat16")
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    read: dict[str, torch.dtype] = {}
    parameter = TensorReader.parameter

    def watched(reader: TensorReader, name: str, shape: tuple[int, ...] | None, dtype: torch.dtype) -> object:
        read[name] = dtype
        return parameter(reader, name, shape, dtype)

    def best_order(outputs: int, inputs: int, dtype: torch.dtype, packable: bool) -> Order:
        packs = packable and dtype == torch.float32
        return Order.ROWS if order is Order.HALF or (order is Order.PACKED and not packs) else order

    monkeypatch.setattr(TensorReader, "parameter", watched)
    monkeypatch.setattr(arrangement, "halves_win", lambda: halves)
    monkeypatch.setattr(arrangement, "SMALLEST_HALF", 0)
    monkeypatch.setattr(arrangement, "best_order", best_order)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    tail = LayerBlock.load(model, 1, LAYERS, dtype=dtype)
    assert read[name] == torch.bfloat16
    head = oracle_head(model, name, hidden)
    torch.testing.assert_close(tail.logits(hidden).double(), head, atol=1e-5, rtol=1e-4)
    assert tail.logits(hidden).dtype == (torch.float64 if dtype == "float64" else torch.float32)


def oracle_head(model: Path, name: str, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in float64 of the norm and head that lie in `model`."""
    tensors = load_file(model / "model.safetensors")
    exact = functional.rms_norm(hidden.double(), (32,), tensors["model.norm.weight"].double(), EPS)
    return exact @ tensors[name].double().T


@needs_products
def test_weights_that_lose_something_stay_as_they_are(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(layers=LAYERS, dtype="float32")
    monkeypatch.setattr(arrangement, "halves_win", lambda: True)
    monkeypatch.setattr(arrangement, "SMALLEST_HALF", 0)
    (block,) = Blocks(model, (0, LAYERS), dtype="float32").blocks
    assert block.weight_bytes == block_bytes(Checkpoint(model), 0, LAYERS, "float32").weights


def test_other_dtypes_and_layers_that_may_not_be_replaced_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "halves_win", lambda: pytest.fail("nobody asks"))
    monkeypatch.setattr(arrangement, "SMALLEST_HALF", 0)
    for dtype, pack in ((torch.float64, True), (torch.bfloat16, True), (torch.float32, False)):
        module = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=dtype))
        module[0].weight.data.fill_(0.5)
        arrangement.arrange([module], dtype, pack=pack)
        assert type(module[0]) is torch.nn.Linear


def test_a_product_that_rounds_its_rows_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounding(torch.nn.Module):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float) -> None:
            super().__init__()
            self._weight = weight * scale

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return functional.linear(inputs.half().float(), self._weight)

    def quicker(candidates: dict[Order, object], *_: object) -> dict[Order, tuple[float, ...]]:
        return {order: (0.5,) for order in candidates if order is Order.HALF}

    monkeypatch.setattr(arrangement, "_measure", quicker)
    if multiplies():
        assert arrangement.halves_win.__wrapped__()
    monkeypatch.setattr(arrangement, "HalfLinear", Rounding)
    assert not arrangement.halves_win.__wrapped__()


def test_layers_that_are_wider_than_the_rest_stay_so() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, dtype=torch.bfloat16))
    arrangement.arrange([module], torch.bfloat16, pack=True)
    assert [layer.weight.dtype for layer in module] == [torch.float32, torch.bfloat16]
    arrangement.arrange([module], torch.float64, pack=True)
    assert [layer.weight.dtype for layer in module] == [torch.float64, torch.float64]
