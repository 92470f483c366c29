"""Linear layers in float32 whose weights are kept in float16: half the memory to hold and to read, the same products.

Most checkpoints are stored in 16 bits, so in float32 half of every weight is zeros. Times a power of two such weights
fit into float16 without any loss; FBGEMM, which comes with torch on x86, widens them to float32 while it multiplies and
adds in float32. For a few rows, as a segment has them, that takes a half to a fifth of the time of other libraries.
Weights that would lose anything are not taken.

To be packed, weights have to be in float32. That is done in blocks of rows: an LM head may be half of what a stage
holds, and a second copy of it, in float32, as much again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

HALVES: Final = (torch.bfloat16, torch.float16)
"""What has 16 bits."""
CHECKED_AT_ONCE: Final = 1 << 18
"""Entries of a weight, so that the check stays within the processor's cache."""
PACKED_AT_ONCE: Final = 1 << 14
"""Rows of a weight. A block of its own costs a tenth of a millisecond a product, so most layers should be one."""
LARGEST_EXPONENT: Final = 100
"""Of the power of two: far from where float32 itself would overflow."""


class HalfLinear(nn.Module):
    """A linear layer with float16 weights, times a power of two, for float32 inputs and outputs.

    Made of weights in float32, bfloat16 or float16, which it does not keep. RuntimeError, AttributeError or
    NotImplementedError where this build or processor has no such product.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float) -> None:
        """`scale` as `half_scale` gives it."""
        super().__init__()
        self.weight_bytes = 2 * weight.numel() + (0 if bias is None else 4 * bias.numel())
        self._unscale = 1.0 / scale
        # Neither parameters nor buffers: torch can read, move or store nothing of what is packed.
        self._blocks = [
            torch.ops.quantized.linear_prepack_fp16(rows.to(torch.float32, copy=True).mul_(scale), bias_of_rows)
            for rows, bias_of_rows in in_blocks(weight, None if bias is None else bias.float())
        ]
        self._product: Any = torch.ops.quantized.linear_dynamic_fp16.default

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)"""
        unscaled = inputs * self._unscale
        outputs: list[torch.Tensor] = [self._product(unscaled, block) for block in self._blocks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def in_blocks(weight: torch.Tensor, bias: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Up to `PACKED_AT_ONCE` rows of `weight` after the other, each with their part of `bias`."""
    rows = weight.detach().split(PACKED_AT_ONCE)
    return zip(rows, bias.detach().split(PACKED_AT_ONCE) if bias is not None else [None] * len(rows), strict=True)


def half_scale(weight: torch.Tensor) -> float | None:
    """The power of two that makes `weight` (outputs, inputs) fit into float16 without loss; None if there is none."""
    if weight.dtype not in (torch.float32, *HALVES) or not weight.numel():
        return None
    parts = weight.detach().split(max(1, CHECKED_AT_ONCE // weight.shape[1]))
    largest = float(torch.stack([part.abs().amax() for part in parts]).amax())
    exponent = 15 - math.frexp(largest)[1]
    if not math.isfinite(largest) or abs(exponent) > LARGEST_EXPONENT:
        return None
    scale = 2.0**exponent
    for part in parts:
        scaled = part.float() * scale
        if not torch.equal(scaled.half().float(), scaled):
            return None
    return scale
