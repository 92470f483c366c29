"""What a draft's training minimises: its distance from the target's own distributions, at every step it will draft.

Forward divergence, KL(target || draft), at every position of the text and every unrolled step. Deeper steps count less,
since a draft token is worth something only if those before it were right (the code of EAGLE-3, arXiv:2503.01840, weighs
step s by 0.8^s). On request, beside it, the probability that the draft's own draw is not the target's.
"""

from __future__ import annotations

import torch

from flowspec.training.divergence import LinearHead, divergence
from flowspec.training.student import Student
from flowspec.training.target import Target, autocast


class Distillation:
    """The loss of `student` against `target` as a function of windows (count, length + 1)."""

    def __init__(
        self, student: Student, target: Target, *, decay: float = 0.8, coupling: float = 0.0, dtype: torch.dtype
    ) -> None:
        self._student = student
        self._target = target
        self._decay = decay
        self._coupling = coupling
        self._dtype = dtype

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """The weighted mean over steps and positions, in nats."""
        loss, _ = self.parts(windows)
        return loss

    def parts(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the loss, the mean divergence per step without weights of the steps)."""
        student, tokens = self._student, windows[:, :-1]
        observed = self._target.observe(tokens)
        with autocast(tokens.device, self._dtype):
            states = student.states(tokens, observed)
        weights, scale = self._weights(states.shape[:3], states.device)
        total, parts = divergence(
            states.flatten(1, 2),
            student.head,
            observed.final.flatten(0, 1),
            self._target.head,
            weights.flatten(1, 2),
            tokens=student.target_tokens,
            dtype=self._dtype,
            coupling=self._coupling,
        )
        extra = student.extra_loss(states, observed, weights)
        return total if extra is None else total + extra, parts / scale

    def _weights(self, shape: torch.Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (steps, batch, length) rows, which add up to 1; and of each step in all, (steps,)."""
        steps, batch, length = shape
        scale = self._decay ** torch.arange(steps, device=device, dtype=torch.float32)
        scale /= scale.sum()
        rows = reached(steps, length, bool(self._student.taps), device)
        weights = rows * (scale / (batch * rows.sum(-1)))[:, None]
        return weights[:, None].expand(shape), scale


def reached(steps: int, length: int, unrolled: bool, device: torch.device) -> torch.Tensor:
    """1.0 where a step has a row for a position, else 0.0: (steps, length). Step s of a head begins at s + 1."""
    positions = torch.arange(length, device=device)
    first = torch.arange(steps, device=device)[:, None] + 1
    return (positions >= first).float() if unrolled else torch.ones(steps, length, device=device)


@torch.no_grad()
def head_logits(head: LinearHead, states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits (rows, vocabulary) in float32 at least; products in `dtype`."""
    logits = (states.to(dtype) @ head.weight.to(dtype).mT).to(torch.promote_types(dtype, torch.float32))
    return logits if head.bias is None else logits + head.bias
