"""How far apart a draft's scores should be: the `sharpness` of its scores at which what came true is likeliest.

A drafter scores a token by how probable it is that the target draws it (`flowspec.model.sampling.SHARPNESS`): the
softmax of `sharpness` times the sums of logit and known noise. The better a draft, the more its best guess may be
trusted, so each has a sharpness of its own. It orders no children, but trees grow by it.
"""

from __future__ import annotations

from typing import Final

import torch

from flowspec.training.distillation import head_logits, reached
from flowspec.training.student import Student
from flowspec.training.target import Target, autocast
from flowspec.training.windows import batches

TEMPERATURES: Final = (0.0, 1.0)
CANDIDATES: Final = tuple(tenths / 10 for tenths in range(5, 81))
LEADERS: Final = 64
"""Tokens of a row that are compared: at any candidate above 1, what is behind them weighs nothing."""
CHUNK: Final = 256
"""Positions whose logits are held at once."""


@torch.no_grad()
def measure_sharpness(
    student: Student, target: Target, windows: torch.Tensor, *, dtype: torch.dtype, batch: int = 8, seed: int = 0
) -> float:
    """The candidate of the least mean surprise over `windows` (count, length + 1), all draft steps and `TEMPERATURES`.

    Of the target's vocabulary only what the draft's has is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    surprise = torch.zeros(len(CANDIDATES), dtype=torch.float64)
    for part in batches(windows, batch):
        tokens = part[:, :-1].to(target.device)
        observed = target.observe(tokens)
        with autocast(target.device, dtype):
            states = student.states(tokens, observed).flatten(1, 2)
        counted = reached(student.steps, tokens.size(1), bool(student.taps), target.device).repeat(1, len(part)) > 0
        final = observed.final.flatten(0, 1)
        for start in range(0, len(final), CHUNK):
            chunk = slice(start, start + CHUNK)
            wanted = head_logits(target.head, final[chunk], dtype)
            noise = -torch.empty(wanted.shape).exponential_(generator=generator).log().to(wanted)
            if student.target_tokens is not None:
                wanted, noise = wanted[:, student.target_tokens], noise[:, student.target_tokens]
            guessed = head_logits(student.head, states[:, chunk], dtype)
            for temperature in TEMPERATURES:
                drawn = (wanted + temperature * noise).argmax(-1)
                for step, counts in zip(guessed, counted[:, chunk], strict=True):
                    surprise += surprises((step + temperature * noise)[counts], drawn[counts]).cpu()
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
