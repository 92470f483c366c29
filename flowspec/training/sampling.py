"""Text by a model itself: to distil a draft on what the target will really write, and to report on.

Plain batch decoding through transformers; it refuses to know pipelines and speculation.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def complete(model: Any, prompts: torch.Tensor, count: int, temperature: float, seed: int = 0) -> torch.Tensor:
    """`count` more tokens for every row of `prompts`, greedily at temperature 0; ends of texts are passed."""
    torch.manual_seed(seed)
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    rows: torch.Tensor = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
        **how,
    )
    return rows[:, prompts.size(1) :]


def repeated_share(tokens: list[int], size: int = 8) -> float:
    """The share of `size`-grams that occurred before in the same text: near one for a loop, zero for none."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def mean_repeated_share(rows: torch.Tensor, size: int = 8) -> float:
    """The mean over all rows of their share of repeated `size`-grams."""
    return sum(repeated_share(row, size) for row in rows.tolist()) / len(rows)


def repeated_tokens(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Which tokens end a `size`-gram that occurred before in the same row: a bool tensor shaped like `rows`."""
    repeated = torch.zeros(rows.shape, dtype=torch.bool)
    for index, row in enumerate(rows.tolist()):
        seen: set[tuple[int, ...]] = set()
        for end in range(size, len(row) + 1):
            gram = tuple(row[end - size : end])
            repeated[index, end - 1] = gram in seen
            seen.add(gram)
    return repeated.to(rows.device)
