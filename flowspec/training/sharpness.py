"""How far apart a draft's scores should be: the `sharpness` of its scores at which what came true is likeliest.

A drafter scores a token by how probable it is that the target draws it (`flowspec.model.sampling.SHARPNESS`): the
softmax of `sharpness` times the sums of logit and known noise. The better a draft, the more its best guess may be
trusted, so each has a sharpness of its own. It orders no children, but trees grow by it.
"""

from __future__ import annotations

from typing import Final

import torch

from flowspec.training.guesses import guesses_of
from flowspec.training.student import Student
from flowspec.training.target import Target

TEMPERATURES: Final = (0.0, 1.0)
CANDIDATES: Final = tuple(tenths / 10 for tenths in range(5, 81))
LEADERS: Final = 64
"""Tokens of a row that are compared: at any candidate above 1, what is behind them weighs nothing."""


@torch.no_grad()
def measure_sharpness(
    student: Student, target: Target, windows: torch.Tensor, *, dtype: torch.dtype, batch: int = 8, seed: int = 0
) -> float:
    """The candidate of the least mean surprise over `windows` (count, length + 1), all draft steps and `TEMPERATURES`.

    Of the target's vocabulary only what the draft's has is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    surprise = torch.zeros(len(CANDIDATES), dtype=torch.float64)
    for each in guesses_of(student, target, windows, dtype=dtype, batch=batch):
        wanted = each.wanted
        noise = -torch.empty(wanted.shape).exponential_(generator=generator).log().to(wanted)
        if student.target_tokens is not None:
            wanted, noise = wanted[:, student.target_tokens], noise[:, student.target_tokens]
        for temperature in TEMPERATURES:
            drawn = (wanted + temperature * noise).argmax(-1)
            for guessed, counted in zip(each.guessed, each.counted, strict=True):
                surprise += surprises((guessed + temperature * noise)[counted], drawn[counted]).cpu()
    return CANDIDATES[int(surprise.argmin())]


def surprises(scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Per candidate the sum over rows of -log softmax(candidate * scores)[drawn], in float64.

    `scores` are (rows, vocabulary), `drawn` (rows,) indices into it.
    """
    leaders = scores.topk(min(LEADERS, scores.size(-1)), dim=-1).values.double()
    best = leaders[:, :1]
    behind = scores.gather(-1, drawn[:, None]).double() - best
    leaders -= best
    sums = [(candidate * leaders).logsumexp(-1) - candidate * behind[:, 0] for candidate in CANDIDATES]
    return torch.stack(sums).sum(-1)
