"""The attention function: causal by its mask alone, packed heads as good as repeated ones, no mask no answer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from flowspec.errors import InvariantViolation
from flowspec.model.attention import no_mask, pack_mask, tree_attention

MODULE = torch.nn.Identity()


def sample(q: int, rows: int, heads: int = 6, kv_heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, q, 8), (1, kv_heads, rows, 8), (1, kv_heads, rows, 8))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("q", "heads"), [(1, 6), (5, 6), (5, 2), (2, 4)])
def test_packed_heads_give_what_repeated_heads_give(q: int, heads: int) -> None:
    query, key, value = sample(q, 9, heads)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[-q:][None, None]
    groups = heads // 2
    expected = functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=visible, scale=0.3
    ).transpose(1, 2)
    additive = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)
    for mask in (visible, additive, pack_mask(additive, groups)):
        output, weights = tree_attention(MODULE, query, key, value, mask, scaling=0.3)
        assert weights is None
        assert torch.allclose(output, expected, atol=1e-12)


def test_a_row_is_blind_to_what_its_mask_hides() -> None:
    query, key, value = sample(4, 9)
    visible = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[:, 0] = True
    before, _ = tree_attention(MODULE, query, key, value, visible[None, None])
    for row in range(4):
        changed_key, changed_value = key.clone(), value.clone()
        changed_key[:, :, ~visible[row]] += 3.0
        changed_value[:, :, ~visible[row]] += 3.0
        after, _ = tree_attention(MODULE, query, changed_key, changed_value, visible[None, None])
        assert torch.equal(after[:, row], before[:, row])


def test_one_row_may_see_everything_but_more_rows_need_a_mask() -> None:
    query, key, value = sample(1, 9)
    everything = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    assert torch.allclose(
        tree_attention(MODULE, query, key, value, None)[0], tree_attention(MODULE, query, key, value, everything)[0]
    )
    query, key, value = sample(2, 9)
    with pytest.raises(InvariantViolation, match="without a mask"):
        tree_attention(MODULE, query, key, value, None)


def test_transformers_may_not_build_a_mask_of_its_own() -> None:
    with pytest.raises(InvariantViolation, match="explicitly"):
        no_mask()
