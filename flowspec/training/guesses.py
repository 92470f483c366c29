"""What a student would guess beside what the target says, on windows of text, some positions at a time.

It knows no measure: whoever reads it counts what it needs. Callers have gradients off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from flowspec.training.distillation import head_logits, reached
from flowspec.training.student import Student
from flowspec.training.target import Target, autocast
from flowspec.training.windows import batches

CHUNK: Final = 512
"""Positions whose logits are held at once."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of some positions."""

    wanted: torch.Tensor
    """The target's logits: (positions, vocabulary)."""
    guessed: torch.Tensor
    """The student's, per draft step: (steps, positions, its vocabulary)."""
    counted: torch.Tensor
    """Where a step has a row for the position, bool: (steps, positions)."""


def guesses_of(
    student: Student, target: Target, windows: torch.Tensor, *, dtype: torch.dtype, batch: int
) -> Iterator[Guesses]:
    """All positions of `windows` (count, length + 1), `batch` windows at a time through both models."""
    device = target.device
    for part in batches(windows, batch):
        tokens = part[:, :-1].to(device)
        observed = target.observe(tokens)
        with autocast(device, dtype):
            states = student.states(tokens, observed).flatten(1, 2)
        counted = reached(student.steps, tokens.size(1), bool(student.taps), device).repeat(1, len(part)) > 0
        final = observed.final.flatten(0, 1)
        for start in range(0, len(final), CHUNK):
            chunk = slice(start, start + CHUNK)
            yield Guesses(
                head_logits(target.head, final[chunk], dtype),
                head_logits(student.head, states[:, chunk], dtype),
                counted[:, chunk],
            )
