"""What is trained as a draft: one face for heads and for small language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import torch

from flowspec.drafting.drafter import Drafter
from flowspec.errors import ModelError
from flowspec.training.divergence import LinearHead
from flowspec.training.target import Observed

SAME_SHAPE: Final = "--begin takes a draft of the same kind, layers and options; a head may get more layers, not fewer"


class Student(Protocol):
    """Windows are (batch, length) of token ids on the device of `module`."""

    steps: int
    """Draft steps that it is unrolled for."""
    target_tokens: torch.Tensor | None
    """Its vocabulary's tokens of the target; None: all."""
    taps: tuple[int, ...]

    @property
    def module(self) -> torch.nn.Module:
        """Its parameters with gradients are what is trained."""

    @property
    def head(self) -> LinearHead:
        """Reads what `states` returns."""

    @property
    def identity(self) -> dict[str, Any]:
        """What its weights mean, by name: what else a checkpoint must have been made with to be resumed."""

    def begin(self, folder: Path) -> None:
        """Start with the weights of the draft in `folder`; `ModelError` unless it has the same shape.

        A head was made like the given one (see `given_head`), and may have more layers: those behind its last begin
        with adding nothing.
        """

    def states(self, tokens: torch.Tensor, observed: Observed) -> torch.Tensor:
        """What the LM head reads, per step and position: (steps, batch, length, hidden).

        Row (s, j) stands for what follows position j, drafted in s + 1 steps from what the target knew before. Rows
        that no draft reaches (`distillation.reached`) are zero.
        """

    def extra_loss(self, states: torch.Tensor, observed: Observed, weights: torch.Tensor) -> torch.Tensor | None:
        """What is minimised beside the divergence, if anything; `weights` are (steps, batch, length)."""

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the files of a loadable draft into `folder`."""

    def drafter(self, folder: Path, device: str) -> Drafter:
        """The draft that was exported to `folder`, as a pipeline would load it, in float32."""


def take_weights(module: torch.nn.Module, given: torch.nn.Module, folder: Path, *, new: tuple[str, ...] = ()) -> None:
    """Copy what `module` trains from `given`, which was loaded from `folder`; names that begin with `new` stay."""
    found, own = dict(given.named_parameters()), dict(module.named_parameters())
    if surplus := next((name for name in found if name not in own), None):
        raise ModelError(f"the draft in {folder} has another shape: {surplus} has no place here", hint=SAME_SHAPE)
    for name, parameter in own.items():
        if not parameter.requires_grad or name.startswith(new):
            continue
        weights = found.get(name)
        if weights is None or weights.shape != parameter.shape:
            shape = "missing" if weights is None else f"of shape {tuple(weights.shape)}"
            raise ModelError(
                f"the draft in {folder} has another shape: {name} is {shape}, expected {tuple(parameter.shape)}",
                hint=SAME_SHAPE,
            )
        parameter.data.copy_(weights)
