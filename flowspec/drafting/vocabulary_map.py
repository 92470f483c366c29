"""A draft vocabulary: the target's tokens that a head may propose, and the two tensors in which checkpoints keep it.

`d2t` (int64, one entry per draft id) holds *offsets*: draft id j is the target's token j + d2t[j]. `t2d` (bool, one
entry per target token) marks the tokens that are in. One follows from the other, which is how a mix-up is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from flowspec.drafting.head_config import HeadConfig
from flowspec.errors import ModelError

MAPS: Final = ("d2t", "t2d")


def read_target_tokens(folder: Path, maps: Mapping[str, torch.Tensor], config: HeadConfig) -> torch.Tensor | None:
    """Draft id -> target token, int64 (draft_vocab,), from the stored `maps`; None when they are the same.

    ModelError unless both tensors are of the right size and say the same.
    """
    if not maps:
        return None
    if len(maps) == 1:
        missing = next(name for name in MAPS if name not in maps)
        raise ModelError(f"{folder}: missing tensors: {missing}")
    offsets, marks = maps["d2t"], maps["t2d"]
    for name, expected in (("d2t", config.draft_vocab_size), ("t2d", config.vocab_size)):
        if tuple(maps[name].shape) != (expected,):
            raise ModelError(f"{folder}: {name} is {tuple(maps[name].shape)}, expected {(expected,)}")
    if offsets.is_floating_point():
        raise ModelError(f"{folder}: d2t is {offsets.dtype}, expected whole numbers")
    tokens = torch.arange(config.draft_vocab_size) + offsets.to(torch.int64)
    if not bool((tokens.diff() > 0).all()) or not torch.equal(tokens, marks.bool().nonzero().flatten()):
        raise ModelError(
            f"{folder}: d2t and t2d do not name the same tokens of the target, in order",
            hint="d2t holds offsets: draft id j is the target's token j + d2t[j]; the head was converted wrongly",
        )
    return None if config.draft_vocab_size == config.vocab_size else tokens


def maps_of(target_tokens: torch.Tensor, vocab_size: int) -> dict[str, torch.Tensor]:
    """`d2t` and `t2d` of these tokens of a vocabulary, in increasing order."""
    tokens = target_tokens.cpu()
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    marks[tokens] = True
    return {"d2t": tokens - torch.arange(len(tokens)), "t2d": marks}
