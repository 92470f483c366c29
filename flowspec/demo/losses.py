"""What the two trainings minimise, as functions of a batch of windows.

The products run in bfloat16 under autocast (on a CPU with bfloat16 matrix units that halves a step), the losses
themselves in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional

from flowspec.demo.data import batches

Loss = Callable[[torch.Tensor], torch.Tensor]


def logits_of(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The model's logits at every position of ``inputs``."""
    with torch.autocast(inputs.device.type, torch.bfloat16):
        hidden = model.model(inputs, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.lm_head(hidden)
    return logits


def next_token_loss(model: Any) -> Loss:
    """Mean cross-entropy of the next token, in nats."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        logits = logits_of(model, windows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    return loss


def distillation_loss(draft: Any, target: Any) -> Loss:
    """Mean forward divergence of the draft from the target's full distributions, in nats."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        inputs = windows[:, :-1]
        with torch.no_grad():
            wanted = logits_of(target, inputs).float().log_softmax(-1)
        got = logits_of(draft, inputs).float().log_softmax(-1)
        return (wanted.exp() * (wanted - got)).sum(-1).mean()

    return loss


@torch.no_grad()
def mean_loss(loss: Loss, windows: torch.Tensor, device: torch.device, count: int = 8) -> float:
    """``loss`` over all windows, ``count`` at a time."""
    total = sum(loss(batch.to(device)).item() * len(batch) for batch in batches(windows, count))
    return total / len(windows)


def bits_per_byte(nats_per_token: float, tokens: int, size: int) -> float:
    """The loss independent of the tokenizer: ``tokens`` tokens stand for ``size`` bytes."""
    return nats_per_token * tokens / size / math.log(2)
