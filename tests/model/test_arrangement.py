"""How weights lie in memory changes nothing that is computed, and there is one copy of them."""

from __future__ import annotations

import functools
import gc
import sys
from pathlib import Path

import pytest
import torch

from flowspec.model import arrangement, half_linear
from flowspec.model.arrangement import Order, PackedLinear, choose
from flowspec.model.block import LayerBlock
from flowspec.model.layout import block_bytes
from flowspec.model.weights import Checkpoint
from tests.model.conftest import WriteCheckpoint
from tests.model.running import Blocks

LAYERS = 3


def force(monkeypatch: pytest.MonkeyPatch, order: Order) -> None:
    """Use `order` wherever it is possible."""

    def best_order(outputs: int, inputs: int, dtype: torch.dtype, packable: bool) -> Order:
        return Order.ROWS if order is Order.PACKED and not packable else order

    monkeypatch.setattr(arrangement, "best_order", best_order)


def packs(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this processor packs weights of `dtype`: half precision needs instructions that not all have."""
    try:
        PackedLinear(torch.ones(8, 8, dtype=dtype), None, dtype)(torch.ones(1, 8, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


ORDERS = [Order.COLUMNS, *((Order.PACKED,) if packs() else ())]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("phi3", False)])
def test_every_order_of_weights_computes_the_same(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, family: str, tied: bool, dtype: str, order: Order
) -> None:
    if order is Order.PACKED and not packs(getattr(torch, dtype)):
        pytest.skip(f"this processor packs no {dtype}")
    model = checkpoint(family, layers=LAYERS, tied=tied, dtype="float32")
    logits, tokens = [], [5, 9, 33, 40, 7, 12]
    for chosen in (Order.ROWS, order):
        force(monkeypatch, chosen)
        blocks = Blocks(model, (0, 1, LAYERS), dtype=dtype)
        logits.append(torch.cat([blocks.fresh().run_chain(tokens, chunk) for chunk in (1, 2, 6)]))
    near = {"atol": 1e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.3, "rtol": 0.1}
    torch.testing.assert_close(logits[0], logits[1], **near)


@pytest.mark.skipif(not packs(), reason="this processor packs nothing")
@pytest.mark.parametrize("entries", [1, 10**9])
def test_a_packed_layer_takes_any_number_of_rows(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(arrangement, "PADDED_FROM", entries)
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    packed = PackedLinear(weight, bias, weight.dtype)
    for shape in ((0, 32), (1, 32), (2, 32), (3, 32), (5, 32), (70, 32), (1, 2, 32), (2, 3, 32)):
        inputs = torch.randn(shape, generator=generator)
        torch.testing.assert_close(packed(inputs), torch.nn.functional.linear(inputs, weight, bias))


def test_weights_are_turned_and_widened_a_block_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arrangement, half_linear):
        monkeypatch.setattr(module, "PACKED_AT_ONCE", 16)
    weight, bias = torch.randn(40, 32).bfloat16(), torch.randn(40)
    turned = arrangement.by_columns(weight, torch.float32)
    assert torch.equal(turned, weight.float())
    assert turned.t().is_contiguous()
    if packs():
        packed, inputs = PackedLinear(weight, bias, torch.float32), torch.randn(3, 32)
        assert [len(bias) for _, bias in packed._blocks] == [16, 16, 8]
        torch.testing.assert_close(packed(inputs), torch.nn.functional.linear(inputs, weight.float(), bias))
        assert packed.weight_bytes == 4 * (40 * 32 + 40)


@pytest.mark.parametrize("order", [Order.ROWS, *ORDERS])
@pytest.mark.parametrize(("first", "end"), [(0, 1), (1, 2), (2, 3), (0, 3)])
def test_the_bytes_of_a_block_do_not_depend_on_the_order_of_its_weights(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, order: Order, first: int, end: int
) -> None:
    model = checkpoint("qwen3", layers=LAYERS, dtype="float32")
    force(monkeypatch, order)
    expected = block_bytes(Checkpoint(model), first, end, "float32")
    assert LayerBlock.load(model, first, end).weight_bytes == expected.weights


@pytest.mark.skipif(sys.platform != "linux", reason="the memory map of a process is read from /proc")
@pytest.mark.parametrize("order", [Order.ROWS, *ORDERS])
@pytest.mark.parametrize(("first", "end"), [(0, 1), (1, 2), (2, 3), (0, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_were_moved_keep_no_file_mapped_beside_them(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, tied: bool, first: int, end: int, order: Order
) -> None:
    model = checkpoint(layers=LAYERS, tied=tied, dtype="float32")
    force(monkeypatch, order)
    # Other tests may have loaded the same file, and modules refer to each other in circles.
    gc.collect()
    block = LayerBlock.load(model, first, end)
    assert block.weight_bytes > 0
    assert str(model) not in Path("/proc/self/maps").read_text()


def test_an_order_is_chosen_only_where_it_clearly_wins() -> None:
    near, clear, clearer = (0.95, 0.93, 0.92, 0.9), (0.8, 0.7, 0.8, 0.8), (0.5, 0.6, 0.6, 1.2)
    assert choose({}) is Order.ROWS
    assert choose({Order.COLUMNS: near}) is Order.ROWS
    assert choose({Order.COLUMNS: clear, Order.PACKED: near}) is Order.COLUMNS
    assert choose({Order.COLUMNS: clear, Order.PACKED: clearer}) is Order.PACKED
    assert choose({Order.COLUMNS: (0.4, 0.4, 1.6, 0.4)}) is Order.ROWS


def test_a_shape_is_timed_once_and_never_where_the_call_is_what_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def measure(candidates: object, inputs: int, dtype: torch.dtype) -> dict[Order, tuple[float, ...]]:
        timed.append(inputs)
        return {Order.COLUMNS: (0.5,) * 4}

    monkeypatch.setattr(arrangement, "_measure", measure)
    best_order = functools.cache(arrangement.best_order.__wrapped__)
    assert [best_order(1000, 501, torch.float32, False) for _ in range(3)] == [Order.COLUMNS] * 3
    assert timed == [501]
    assert best_order(16, 16, torch.float32, True) is Order.ROWS
    assert best_order(1000, 501, torch.float64, True) is Order.ROWS
    assert timed == [501]


def test_timing_covers_every_order_that_this_processor_knows() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        candidates = arrangement._candidates(300, 400, dtype, True)
        ratios = arrangement._measure(candidates, 400, dtype)
        assert list(ratios) == list(candidates)[1:]
        assert all(len(parts) == len(arrangement.TIMED_ROWS) and min(parts) > 0 for parts in ratios.values())
