"""The best of rows of scores, best first, without sorting a vocabulary.

It knows no temperature, no noise and no tokens: a row is numbers, and what comes back are their places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from flowspec.errors import PipelineError

if TYPE_CHECKING:
    import torch

TOP_BLOCKS: Final = (64, 16)
"""Neighbouring tokens of which only the best is looked at first when the best of a large vocabulary are looked for: the
first of these that leaves few enough blocks."""

MODELS: Final = "the model's"
DRAFTERS: Final = "the drafter's"

Children = list[tuple[int, float]]
"""Places of a row's best, best first, each with its score."""


def check_finite(greatest: npt.NDArray[np.floating], positions: Sequence[int], whose: str) -> None:
    """Raise `PipelineError` unless the largest score of each row, (n,), is a number; `positions` (n,) name them.

    `whose` output the rows are: `MODELS` or `DRAFTERS`.
    """
    finite = np.isfinite(greatest)
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise PipelineError(
            f"the largest logit at position {positions[index]} is {greatest.flat[index]}: {whose} output is damaged"
        )


def best(scores: npt.NDArray[np.floating], positions: Sequence[int], count: int, sharpness: float) -> list[Children]:
    """Per row of a drafter's `scores` (n, m) the `count` best indices, best first, of equal ones the lower index first.

    With each its part of the log-softmax of `sharpness` times the row. `positions` (n,) are for an error's text.
    """
    import torch

    rows = torch.from_numpy(scores)
    values, indices = topmost(rows, min(count + 1, scores.shape[1]))
    greatest = values[:, :1]
    check_finite(greatest[:, 0].numpy(), positions, DRAFTERS)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        # Which of equal ones a search for the best finds is not said; a stable sort is slower.
        values, indices = rows.sort(descending=True, stable=True)
    whole = rows.sub(greatest).mul_(sharpness).exp_().sum(1, keepdim=True).log_()
    values = (values[:, :count] - greatest) * sharpness - whole
    return [
        [(index, value) for index, value in zip(*row, strict=True) if value > -math.inf]
        for row in zip(indices[:, :count].tolist(), values.tolist(), strict=True)
    ]


def topmost(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rows.topk(count)` of (n, m), in a fraction of its time where m is a large vocabulary.

    No more than `count` blocks can hold the `count` largest, and those are the blocks with the largest maxima.
    """
    n, m = rows.shape
    size = next((size for size in TOP_BLOCKS if m >= 4 * size * count and m % size == 0), None)
    if size is None:
        return rows.topk(count)
    blocks = rows.view(n, m // size, size)
    chosen = blocks.amax(2).topk(count).indices
    few = blocks.gather(1, chosen[:, :, None].expand(n, count, size)).view(n, count * size)
    values, inside = few.topk(count)
    return values, chosen.gather(1, inside // size) * size + inside % size
