"""Tensors cross the wire bit for bit, and no claim about one is believed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import MalformedMessage, OversizeMessage
from flowspec.wire.tensors import (
    COPY_BYTES,
    ITEM_BYTES,
    TensorSpec,
    buffer_of,
    check_size,
    describe,
    spec_from_plain,
    tensor_from,
)

DTYPES = [getattr(torch, name) for name in ITEM_BYTES]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits at all, NaN and subnormal numbers included."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(shape=SHAPES, offset=st.integers(0, 9), writable=st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_dtype_and_shape_comes_back_bit_for_bit_from_any_address(
    dtype: torch.dtype, shape: tuple[int, ...], offset: int, writable: bool
) -> None:
    tensor = random_bits(shape, dtype)
    sent = bytes(offset) + bytes(buffer_of(tensor))
    arrived = memoryview(bytearray(sent) if writable else sent)[offset:]
    spec = describe(tensor)
    check_size(spec, arrived.nbytes, max_elements=1000, max_bytes=8000)
    back = tensor_from(spec, arrived)
    assert back.dtype == dtype
    assert back.shape == shape
    assert bits(back) == bits(tensor)
    back.zero_()


def test_a_large_writable_buffer_is_used_without_a_copy_and_a_small_one_is_copied() -> None:
    for count, shared in ((COPY_BYTES, True), (COPY_BYTES - 1, False)):
        buffer = bytearray(count)
        tensor = tensor_from(TensorSpec("uint8", (count,)), buffer)
        buffer[5] = 7
        assert (tensor[5].item() == 7) is shared


def test_a_large_unaligned_or_readonly_buffer_is_copied() -> None:
    spec = TensorSpec("float32", (COPY_BYTES,))
    unaligned = memoryview(bytearray(4 * COPY_BYTES + 1))[1:]
    tensor = tensor_from(spec, unaligned)
    assert tensor.data_ptr() % 4 == 0
    unaligned[4] = 1
    assert not tensor.any()
    tensor_from(spec, bytes(4 * COPY_BYTES)).fill_(1.0)


def test_a_tensor_that_is_not_contiguous_travels_in_reading_order() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert bytes(buffer_of(tensor)) == bits(tensor)
    view = torch.arange(12.0)[2:5]
    assert bytes(buffer_of(view)) == bits(view)


def test_a_contiguous_tensor_is_not_copied_to_be_sent() -> None:
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    buffer = buffer_of(tensor)
    tensor[0] = 1.0
    assert any(buffer)


def test_a_tensor_that_needs_gradients_travels() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert bytes(buffer_of(tensor)) == bits(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_a_dtype_outside_the_list_is_not_sent(dtype: torch.dtype) -> None:
    with pytest.raises(MalformedMessage, match="does not travel"):
        describe(torch.zeros(2, dtype=dtype))


def test_a_tensor_of_too_many_dimensions_is_not_sent() -> None:
    with pytest.raises(MalformedMessage, match="9 dimensions"):
        describe(torch.zeros((1,) * 9))


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        ["float32"],
        ["float32", [2], 3],
        ["float32", 2],
        [b"float32", [2]],
        ["Tensor", [2]],
        ["bool", [2]],
        ["load", [2]],
        ["float32", [-1]],
        ["float32", [True]],
        ["float32", [2.0]],
        ["float32", ["2"]],
        ["float32", [None]],
        ["float32", [2**63]],
        ["float32", [1] * 9],
        {"float32": [2]},
    ],
)
def test_a_malformed_description_is_refused(plain: object) -> None:
    with pytest.raises(MalformedMessage):
        spec_from_plain(plain)


@pytest.mark.parametrize(
    ("shape", "size", "error"),
    [
        ((2,), 7, MalformedMessage),
        ((2,), 9, MalformedMessage),
        ((0,), 4, MalformedMessage),
        ((), 0, MalformedMessage),
        ((0, 2**62), 4, OversizeMessage),
        ((2**62, 2**62), 4, OversizeMessage),
        ((1000,), 4000, OversizeMessage),
        ((200,), 801, OversizeMessage),
    ],
)
def test_a_shape_that_is_not_the_buffers_size_is_refused(
    shape: tuple[int, ...], size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_size(TensorSpec("float32", shape), size, max_elements=200, max_bytes=800)


def test_an_empty_tensor_keeps_its_shape() -> None:
    spec = TensorSpec("float16", (0, 4096))
    check_size(spec, 0, max_elements=4096, max_bytes=1)
    assert tensor_from(spec, b"").shape == (0, 4096)


def test_a_zero_dimension_does_not_hide_a_huge_one() -> None:
    with pytest.raises(OversizeMessage):
        check_size(TensorSpec("float32", (0, 2**62, 2**62)), 0, max_elements=2**25, max_bytes=1)
