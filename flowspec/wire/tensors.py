"""Tensor <-> name of its dtype, shape and raw little-endian bytes, without a copy where that is safe.

Nothing is believed: a dtype must be in the list, the shape must fit the limits, and its product must be the buffer's
length, before any memory is touched. torch is imported only when there is a tensor, so that a client never loads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowspec.errors import MalformedMessage, OversizeMessage

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
"""The dtypes that travel. bool does not: a byte other than 0 and 1 in it is undefined behaviour in torch."""

MAX_DIMENSIONS = 8
COPY_BYTES = 65536
"""Smaller buffers are copied on arrival: cheap, and a small tensor does not keep a whole receive buffer alive."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the header says of one tensor. `dtype` is the torch name without the prefix, e.g. "bfloat16"."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


def spec_from_plain(plain: Any) -> TensorSpec:
    """`[dtype name, [dimension, ...]]` as it came from the wire."""
    if type(plain) is not list or len(plain) != 2 or type(plain[0]) is not str or type(plain[1]) is not list:
        raise MalformedMessage("a tensor is described by [dtype name, [dimension, ...]]")
    dtype, shape = plain
    if dtype not in ITEM_BYTES:
        raise MalformedMessage(f"dtype {dtype[:40]!r} does not travel; known are {', '.join(ITEM_BYTES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise MalformedMessage(f"a tensor of {len(shape)} dimensions, at most {MAX_DIMENSIONS} travel")
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise MalformedMessage("a dimension that is no integer from 0 to 2**63 - 1")
    return TensorSpec(dtype, tuple(shape))


def check_size(spec: TensorSpec, buffer_bytes: int, *, max_elements: int, max_bytes: int) -> None:
    """Raise unless the shape fits the limits and is exactly as large as the buffer."""
    if buffer_bytes > max_bytes:
        raise OversizeMessage(f"a tensor of {buffer_bytes} bytes, at most {max_bytes} travel")
    elements = spec.elements
    # Zeros are left out of this product: torch computes strides from the other dimensions of an empty tensor.
    if (elements or math.prod(filter(None, spec.shape))) > max_elements:
        raise OversizeMessage(f"a tensor of shape {list(spec.shape)}, at most {max_elements} elements travel")
    if elements * ITEM_BYTES[spec.dtype] != buffer_bytes:
        raise MalformedMessage(
            f"{spec.dtype} tensor of shape {list(spec.shape)} takes {spec.nbytes} bytes, the frame has {buffer_bytes}"
        )


def describe(tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        raise MalformedMessage(f"dtype {dtype} does not travel; known are {', '.join(ITEM_BYTES)}")
    if tensor.dim() > MAX_DIMENSIONS:
        raise MalformedMessage(f"a tensor of {tensor.dim()} dimensions, at most {MAX_DIMENSIONS} travel")
    return TensorSpec(dtype, tuple(tensor.shape))


def buffer_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes; the same memory when it is contiguous and on the CPU.

    Whoever sends the buffer gives the tensor up: the socket's thread reads it later, without a lock.
    """
    import torch

    if tensor.requires_grad or not tensor.is_cpu or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    if not tensor.dim():
        tensor = tensor.reshape(1)
    if not tensor.numel():
        return memoryview(b"")
    return tensor.view(torch.uint8).numpy().data.cast("B")


def tensor_from(spec: TensorSpec, buffer: bytes | bytearray | memoryview) -> Tensor:
    """A tensor over `buffer`, whose size `check_size` has found right: the same memory when that is large, writable
    and aligned, else a copy. Either way the tensor is its owner's alone."""
    import torch

    dtype = getattr(torch, spec.dtype)
    view = memoryview(buffer)
    if not view.nbytes:
        return torch.empty(spec.shape, dtype=dtype)
    if view.readonly or view.nbytes < COPY_BYTES:
        view = memoryview(bytearray(view))
    tensor = torch.frombuffer(view, dtype=dtype)
    if tensor.data_ptr() % ITEM_BYTES[spec.dtype]:
        tensor = tensor.clone()
    return tensor.view(spec.shape)


def plain_specs(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    return [[spec.dtype, list(spec.shape)] for spec in specs]
