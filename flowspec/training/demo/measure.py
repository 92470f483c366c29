"""The figures of the model card, each measured on text that neither model was trained on.

Losses are in nats per token; agreement is the share of positions at which the target's first choice is among the
draft's first k, on the same context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as functional

from flowspec.training.sampling import complete, mean_repeated_share
from flowspec.training.windows import TokenFile, batches

TOP: Final = (1, 2, 4)
BANDS: Final = ((0, 128), (128, 512), (512, 1024), (1024, 1536), (1536, 2000))
LOSS_BATCH: Final = 8


def logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The model's logits as it is stored, without autocast."""
    found: torch.Tensor = model(inputs, use_cache=False).logits
    return found.float()


@torch.no_grad()
def loss_on(model: Any, windows: torch.Tensor) -> float:
    """Mean cross-entropy of the next token over all windows."""
    total = 0.0
    for batch in batches(windows, LOSS_BATCH):
        found = logits(model, batch[:, :-1]).flatten(0, 1)
        total += functional.cross_entropy(found, batch[:, 1:].flatten()).item() * len(batch)
    return total / len(windows)


@torch.no_grad()
def loss_by_position(model: Any, windows: torch.Tensor) -> dict[str, float]:
    """Mean cross-entropy by how many tokens of context came before, in bands."""
    rows = []
    for batch in batches(windows, 1):
        found = logits(model, batch[:, :-1]).flatten(0, 1)
        rows.append(functional.cross_entropy(found, batch[:, 1:].flatten(), reduction="none"))
    by_position = torch.stack(rows).mean(0)
    return {f"{low}-{high - 1}": by_position[low:high].mean().item() for low, high in BANDS}


@torch.no_grad()
def agreement(draft: Any, target: Any, rows: torch.Tensor, skip: int = 0) -> dict[int, float]:
    """For every k in `TOP`: how often the target's argmax is among the draft's top k, from position `skip` on."""
    hits = dict.fromkeys(TOP, 0)
    positions = 0
    for batch in batches(rows, LOSS_BATCH):
        wanted = logits(target, batch)[:, skip:].argmax(-1, keepdim=True)
        choices = logits(draft, batch)[:, skip:].topk(max(TOP), dim=-1).indices
        positions += wanted.numel()
        for k in TOP:
            hits[k] += int((choices[..., :k] == wanted).any(-1).sum())
    return {k: count / positions for k, count in hits.items()}


def beginnings(files: Sequence[TokenFile], count: int, length: int) -> torch.Tensor:
    """The first `length` tokens of `count` files, spread evenly over those that are long enough."""
    rows = [file.tokens[:length] for file in files if len(file.tokens) >= length]
    step = len(rows) / count
    chosen = [torch.from_numpy(rows[int(index * step)]) for index in range(count)]
    return torch.stack(chosen).long()


def completions(target: Any, prompts: torch.Tensor, count: int, temperature: float) -> tuple[torch.Tensor, float]:
    """Prompts with their completions, and the completions' mean share of repeated 8-grams."""
    added = complete(target, prompts, count, temperature)
    return torch.cat([prompts, added], dim=1), mean_repeated_share(added)
