"""How the weights of linear layers lie in memory on a CPU: in the order in which this one multiplies few rows fastest.

What is computed stays the same, up to rounding. Weights that lose nothing in float16 are kept in that, where this
processor multiplies them faster: a stage that waits for its turn finds none of its weights in the caches, so that half
the bytes count more than anything else. For other weights the best order depends on the processor, the dtype and the
shape; so each shape is timed once a process, and only what clearly wins is used.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from flowspec.model.half_linear import PACKED_AT_ONCE, HalfLinear, half_scale, in_blocks

TIMED_ROWS: Final = (1, 4, 7, 16)
"""Rows that matter: a token alone, and segments; libraries are not alike fast at multiples of four and between."""
SMALLEST: Final = 100_000
"""Entries of a weight; what is smaller costs the call more than the product."""
SMALLEST_HALF: Final = 50_000
"""The same for a weight in float16."""
HALF_SAMPLE: Final = (1024, 1024)
"""Outputs and inputs of the weight that tells whether float16 is faster here; larger than most caches of one core."""
LARGEST_SAMPLE: Final = 4_000_000
"""Entries that are timed of a weight."""
GAIN: Final = 0.9
"""An order must take at most this part of the time of plain rows, in the geometric mean over `TIMED_ROWS`..."""
LOSS: Final = 1.5
"""...and at most this part of it at any of them."""
PADDED_FROM: Final = 2_000_000
"""Entries of a packed weight from which on oneDNN multiplies `PADDED_ROWS` rows in less time than one or two."""
PADDED_ROWS: Final = 4
REPEATS: Final = range(5, 16)
BUDGET: Final = 0.15
"""Seconds after which no repeat beyond the least number begins."""
CACHE_ENTRIES: Final = 1_000_000
"""float32 that are touched between two products, so that weights come from where they do in a forward of layers."""

Product = Callable[[torch.Tensor], torch.Tensor]


class Order(Enum):
    ROWS = "rows"
    """As files have it."""
    COLUMNS = "columns"
    PACKED = "packed"
    """In oneDNN's blocks."""
    HALF = "half"
    """In float16 and FBGEMM's blocks."""


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN keeps, in `dtype`, in blocks of its own; there is no other copy of it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._size, self._padded = weight.shape[0], weight.numel() >= PADDED_FROM
        self.weight_bytes = dtype.itemsize * sum(part.numel() for part in (weight, bias) if part is not None)
        # Neither parameters nor buffers: torch can read, move or store nothing of what is packed.
        self._blocks = [
            (
                torch.ops.mkldnn._reorder_linear_weight(rows.to(dtype).contiguous(), TIMED_ROWS[-1]),
                None if bias_of_rows is None else bias_of_rows.to(dtype, copy=True),
            )
            for rows, bias_of_rows in in_blocks(weight, bias)
        ]
        self._product: Any = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)"""
        rows = inputs if inputs.dim() == 2 else inputs.reshape(-1, inputs.shape[-1])
        count = rows.shape[0]
        if self._padded and 0 < count <= PADDED_ROWS // 2:
            rows = rows.repeat(PADDED_ROWS // count, 1)
        parts = [self._product(rows, block, bias, "none", [], "") for block, bias in self._blocks]
        outputs: torch.Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if rows is inputs:
            return outputs
        return outputs[:count].view(*inputs.shape[:-1], self._size)


def product(linear: nn.Module) -> Product:
    """What `linear` computes, without the way through a module. Not to be kept when its weights may still be moved."""
    if type(linear) is nn.Linear:
        return functools.partial(functional.linear, weight=linear.weight, bias=linear.bias)
    forward: Product = linear.forward
    return forward


def arrange(modules: Iterable[nn.Module], dtype: torch.dtype, *, pack: bool = False) -> bool:
    """Store the weights of all linear layers in `modules`, on the CPU, in their best orders; whether any changed.

    They compute in `dtype` at least; weights that came with fewer bits are widened one after the other, or stay narrow.

    With `pack`, linear layers inside `modules` may be replaced by `HalfLinear` and `PackedLinear`; without it only
    weights move. A weight that an embedding looks up row by row stays as it is.
    """
    changed = False
    for module in modules:
        embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        linears = _linears(module)
        while linears:
            # Taken from the list, so that what a replaced layer held is free before the next one is packed.
            parent, name, linear = linears.pop()
            if id(linear.weight) in embeddings:
                continue
            weight, packable = linear.weight, pack and parent is not None
            computed = dtype if weight.element_size() < dtype.itemsize else weight.dtype
            halvable = packable and computed == torch.float32 and weight.numel() >= SMALLEST_HALF
            scale = half_scale(weight) if halvable and halves_win() else None
            if scale is not None and parent is not None:
                setattr(parent, name, HalfLinear(weight, linear.bias, scale))
                changed = True
                continue
            order = best_order(weight.shape[0], weight.shape[1], computed, packable)
            if order is Order.PACKED and parent is not None:
                setattr(parent, name, PackedLinear(weight, linear.bias, computed))
            else:
                if order is Order.COLUMNS:
                    weight.data = by_columns(weight, computed)
                widen(linear, dtype)
            changed |= order is not Order.ROWS
    return changed


def widen(module: nn.Module, dtype: torch.dtype, but: Sequence[nn.Parameter] = ()) -> None:
    """Convert the parameters of `module` that have fewer bits than `dtype` to it, one after the other, `but` those."""
    kept = {id(parameter) for parameter in but}
    for parameter in module.parameters():
        narrower = parameter.is_floating_point() and parameter.element_size() < dtype.itemsize
        if narrower and id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of all weights, packed ones included; storage that two of them share counts once."""
    held: dict[int, int] = {}
    for module in modules:
        for part in module.modules():
            if isinstance(part, (HalfLinear, PackedLinear)):
                held[id(part)] = part.weight_bytes
            for tensor in part.parameters(recurse=False):
                # Tensors on meta have no storage that could be shared.
                held[tensor.data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def detach_from_files(modules: Iterable[nn.Module]) -> None:
    """Copy every parameter that may be a view of a file, so that none stays mapped beside copies of its content."""
    for parameter in {id(parameter): parameter for module in modules for parameter in module.parameters()}.values():
        # One by columns is a copy already.
        if parameter.is_contiguous():
            parameter.data = parameter.detach().clone()


def _linears(module: nn.Module) -> list[tuple[nn.Module | None, str, nn.Linear]]:
    """Parent, name in it, and layer; the parent of `module` itself is not known."""
    found: list[tuple[nn.Module | None, str, nn.Linear]] = []
    if type(module) is nn.Linear:
        found.append((None, "", module))
    for parent in module.modules():
        found += [(parent, name, child) for name, child in parent.named_children() if type(child) is nn.Linear]
    return found


def by_columns(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`weight` in `dtype`, column after column; no more than a block of its rows is held a third time."""
    columns = torch.empty(weight.shape[1], weight.shape[0], dtype=dtype)
    for turned, (rows, _) in zip(columns.split(PACKED_AT_ONCE, dim=1), in_blocks(weight, None), strict=True):
        # Not copied as it lies: to turn a matrix while its dtype changes takes three times as long.
        turned.copy_(rows.to(dtype).t().contiguous())
    return columns.t()


@functools.cache
def halves_win() -> bool:
    """Whether this processor multiplies float32 rows faster with weights in float16, and leaves the rows in float32."""
    outputs, inputs = HALF_SAMPLE
    weight = _sample(outputs, inputs, torch.bfloat16).float()
    candidates: dict[Order, Product] = {Order.ROWS: functools.partial(functional.linear, weight=weight)}
    _add(candidates, Order.HALF, lambda: HalfLinear(weight, None, 1.0), weight)
    if Order.HALF in candidates and not _keeps_rows(candidates[Order.HALF], weight):
        return False
    return choose(_measure(candidates, inputs, torch.float32)) is Order.HALF


def _keeps_rows(product: Product, weight: torch.Tensor) -> bool:
    """Whether `product` with `weight` takes a row as it is: another processor's might round it to 16 bits as well."""
    between = 1.0 + 2.0**-12
    exact = weight.double().sum(1) * between
    given = product(torch.full((1, weight.shape[1]), between))[0]
    return bool((given - exact).abs().max() < 2.0**-16 * exact.abs().max())


@functools.cache
def best_order(outputs: int, inputs: int, dtype: torch.dtype, packable: bool) -> Order:
    """What to do with weights (outputs, inputs); asked again, the answer is the same."""
    if outputs * inputs < SMALLEST or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return Order.ROWS
    return choose(_measure(_candidates(outputs, inputs, dtype, packable), inputs, dtype))


def choose(ratios: dict[Order, tuple[float, ...]]) -> Order:
    """The order with the least time, from the times at each of `TIMED_ROWS` over those of plain rows."""
    best, least = Order.ROWS, GAIN
    for order, parts in ratios.items():
        mean = math.prod(parts) ** (1 / len(parts))
        if mean <= least and max(parts) <= LOSS:
            best, least = order, mean
    return best


@torch.inference_mode()
def _candidates(outputs: int, inputs: int, dtype: torch.dtype, packable: bool) -> dict[Order, Product]:
    weight = _sample(min(outputs, max(1, LARGEST_SAMPLE // inputs)), inputs, dtype)
    found: dict[Order, Product] = {Order.ROWS: functools.partial(functional.linear, weight=weight)}
    if dtype == torch.float32:
        # In half precision columns never win, and without instructions for it they take forever.
        found[Order.COLUMNS] = functools.partial(functional.linear, weight=by_columns(weight, dtype))
    if packable and torch.backends.mkldnn.is_available():
        _add(found, Order.PACKED, lambda: PackedLinear(weight, None, dtype), weight)
    return found


def _sample(outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """A weight whose values are neither zero nor denormal; no draw from the generator that others use."""
    return torch.linspace(-1.0, 1.0, outputs * inputs).view(outputs, inputs).to(dtype)


def _add(candidates: dict[Order, Product], order: Order, make: Callable[[], nn.Module], weight: torch.Tensor) -> None:
    """Try what `make` makes of `weight`; what this build or processor cannot do is no candidate."""
    with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError):
        module = make()
        module(weight[:1])
        candidates[order] = module


@torch.inference_mode()
def _measure(candidates: dict[Order, Product], inputs: int, dtype: torch.dtype) -> dict[Order, tuple[float, ...]]:
    """The time of each candidate but the first over that of the first, for each of `TIMED_ROWS`.

    Medians over repeats of ratios within a repeat, in this thread's own time, so that neither other processes nor a
    changing clock decide; the order of turns rotates.
    """
    first, *others = candidates
    if not others:
        return {}
    samples = [torch.ones(rows, inputs, dtype=dtype) for rows in TIMED_ROWS]
    cache = torch.zeros(CACHE_ENTRIES)
    for product in candidates.values():
        for sample in samples:
            product(sample)
    ratios: dict[Order, list[list[float]]] = {order: [[] for _ in samples] for order in others}
    turns = list(candidates.items())
    began = time.perf_counter()
    for repeat in range(REPEATS.stop):
        if repeat >= REPEATS.start and time.perf_counter() - began > BUDGET:
            break
        turns.append(turns.pop(0))
        for index, sample in enumerate(samples):
            taken = {}
            for order, product in turns:
                cache.add_(1)
                start = time.thread_time()
                product(sample)
                taken[order] = time.thread_time() - start
            for order in others:
                # A clock too coarse to tell decides nothing.
                ratios[order][index].append(taken[order] / taken[first] if taken[first] else 1.0)
    return {order: tuple(map(statistics.median, parts)) for order, parts in ratios.items()}
