"""What the target's trainings minimise, as functions of a batch of windows.

The second, `settling_loss`, is for a target that has learned to write but falls into loops.

The products run in bfloat16 under autocast (on a CPU with bfloat16 matrix units that halves a step), the losses
themselves in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as functional

from flowspec.training.loop import Loss
from flowspec.training.sampling import complete, repeated_tokens
from flowspec.training.windows import batches


def logits_of(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The model's logits at every position of `inputs`."""
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


@dataclass(frozen=True, slots=True)
class Unlikelihood:
    """How loops are unlearned: see `settling_loss`."""

    prefix: int = 64
    """Tokens of a window that the model continues."""
    count: int = 192
    """Tokens of the continuation."""
    size: int = 8
    """The last token of every run of so many that occurred before in the same text is made less likely."""
    weight: float = 1.0
    sampled: tuple[float, ...] = (0.0,)
    """Temperatures of the continuations, in turn."""


def settling_loss(model: Any, how: Unlikelihood) -> Loss:
    """Next-token loss, plus the unlikelihood of what repeats itself in the model's own continuations.

    Sequence-level unlikelihood of Welleck et al. (arXiv:1908.04319, section 4.2): with p the model's probability of a
    repeated token of its own continuation, -log(1 - p), here averaged over all tokens of the continuations.
    """
    plain = next_token_loss(model)
    turn = count()

    def loss(windows: torch.Tensor) -> torch.Tensor:
        prompts = windows[:, : how.prefix]
        step = next(turn)
        temperature = how.sampled[step % len(how.sampled)]
        rows = torch.cat([prompts, complete(model, prompts, how.count, temperature, seed=step)], dim=1)
        repeated = repeated_tokens(rows, how.size)[:, how.prefix :]
        logits = logits_of(model, rows[:, :-1])[:, how.prefix - 1 :].float()
        # log(1 - p) from the other tokens' logits: a loop's tokens are as good as certain.
        others = logits.scatter(-1, rows[:, how.prefix :, None], -math.inf)
        against = logits.logsumexp(-1) - others.logsumexp(-1)
        return plain(windows) + how.weight * (against * repeated).mean()

    return loss


@torch.no_grad()
def mean_loss(loss: Loss, windows: torch.Tensor, device: torch.device, size: int = 8) -> float:
    """`loss` over all windows, `size` at a time."""
    total = sum(loss(batch.to(device)).item() * len(batch) for batch in batches(windows, size))
    return total / len(windows)


def bits_per_byte(nats_per_token: float, tokens: int, size: int) -> float:
    """The loss independent of the tokenizer: `tokens` tokens stand for `size` bytes."""
    return nats_per_token * tokens / size / math.log(2)
