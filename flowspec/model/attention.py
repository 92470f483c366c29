"""The attention function that flowspec gives to transformers' layers: an explicit tree mask, grouped heads packed.

It never invents a mask: without one, more than one query row is an error, because transformers would otherwise let
rows see the future in silence.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from flowspec.errors import InvariantViolation
from flowspec.model.rows import RowTree

NAME: Final = "flowspec"


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend under `attention_mask`.

    query (1, heads, q, d), key and value (1, kv_heads, rows, d). The mask, bool or additive, is (1, 1, q, rows), or
    (1, 1, groups * q, rows) when it was repeated for the groups beforehand; None is allowed for one row only and means
    that the row sees all. Returns (1, q, heads, d). Grouped heads are packed as more rows of the same key heads, which
    spares copying K and V per group.
    """
    _, heads, q, d = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if attention_mask is None:
        if q > 1:
            raise InvariantViolation("attention without a mask over more than one row")
    elif groups > 1 and attention_mask.shape[2] == q:
        attention_mask = pack_mask(attention_mask, groups)
    if groups > 1:
        query = query.reshape(1, kv_heads, groups * q, d)
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    if groups > 1:
        output = output.reshape(1, heads, q, d)
    return output.transpose(1, 2), None


def pack_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """A mask (1, 1, q, rows) repeated for `groups` packed heads: (1, 1, groups * q, rows)."""
    return mask if groups == 1 else mask.repeat(1, 1, groups, 1)


def additive_mask(
    rows: RowTree, groups: int, dtype: torch.dtype, device: torch.device, window: int | None = None
) -> torch.Tensor | None:
    """The mask of the open batch as attention adds it, repeated for `groups` packed heads: (1, 1, groups * q, rows).

    So no layer has to convert it. None when one row attends to all there are.
    """
    if rows.unmasked(window):
        return None
    hidden = torch.from_numpy(np.logical_not(rows.mask(window))).to(device)
    q, known = hidden.shape
    mask = torch.zeros(groups, q, known, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, -np.inf).view(1, 1, groups * q, known)


def no_mask(*args: Any, **kwargs: Any) -> None:
    raise InvariantViolation("flowspec passes every mask explicitly; transformers must not build one")


def register() -> None:
    """Make `attn_implementation="flowspec"` known to transformers; may be called again."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, no_mask)
