"""How good a draft is on held-out text, step by step, with the text's own tokens before every guess.

Agreement is the share of positions at which the target's first choice is among the draft's first k. What a draft is
worth in a tree says `acceptance_length`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from flowspec.drafting import acceptance
from flowspec.drafting.drafter import Drafter
from flowspec.model.block import LayerBlock
from flowspec.model.weights import Checkpoint
from flowspec.training.distillation import Distillation
from flowspec.training.guesses import guesses_of
from flowspec.training.student import Student
from flowspec.training.target import Target
from flowspec.training.windows import TokenFile, batches
from flowspec.wire.parameters import SamplingParameters

TOP: Final = (1, 2, 4)
PER_FILE: Final = 4
CONTEXTS: Final = (64, 1000)
"""Shortest and longest context of a tree, in tokens."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one draft step: its divergence in nats, and for k of `TOP` the share of positions."""

    divergence: float
    top: dict[int, float]


@torch.no_grad()
def agreement(
    student: Student, target: Target, windows: torch.Tensor, *, dtype: torch.dtype, batch: int = 8
) -> list[Agreement]:
    """Per draft step, over all `windows` (count, length + 1)."""
    distance = Distillation(student, target, dtype=dtype)
    hits = torch.zeros(student.steps, len(TOP))
    rows = torch.zeros(student.steps)
    divergence = torch.zeros(student.steps)
    for part in batches(windows, batch):
        divergence += distance.parts(part.to(target.device))[1].cpu() * len(part)
    for each in guesses_of(student, target, windows, dtype=dtype, batch=batch):
        rows += each.counted.sum(-1).cpu()
        first = each.guessed.topk(max(TOP), dim=-1).indices
        if student.target_tokens is not None:
            first = student.target_tokens[first]
        right = first == each.wanted.argmax(-1)[None, :, None]
        for index, k in enumerate(TOP):
            hits[:, index] += (right[..., :k].any(-1) * each.counted).sum(-1).cpu()
    shares = hits / rows[:, None]
    return [
        Agreement(float(divergence[step] / len(windows)), dict(zip(TOP, shares[step].tolist(), strict=True)))
        for step in range(student.steps)
    ]


def described(found: Sequence[Agreement]) -> str:
    """One line: per draft step how often the first guess was right."""
    shares = " ".join(f"{100 * step.top[1]:.1f}" for step in found)
    return f"held-out text: divergence {found[0].divergence:.4f}, first guess right {shares} % (by draft step)"


def table(found: Sequence[Agreement]) -> list[dict[str, Any]]:
    """The same as values for JSON."""
    return [
        {"step": step, "divergence": round(each.divergence, 4), **{f"top{k}": round(v, 4) for k, v in each.top.items()}}
        for step, each in enumerate(found)
    ]


def acceptance_length(
    drafter: Drafter, target: Checkpoint, files: Sequence[TokenFile], positions: int
) -> dict[str, Any]:
    """Mean tokens per target forward of a full tree of drafts, teacher-forced at temperature 0, as values for JSON."""
    samples = tree_samples([file.tokens.tolist() for file in files], positions)
    if not samples:
        return {}
    block = LayerBlock.load(target, 0, target.layer_count)
    with torch.no_grad():
        trials = list(acceptance.measure(drafter, block, samples, SamplingParameters(temperature=0.0, seed=0)))
    found = acceptance.Acceptance.of(trials)
    return {
        "tokens_per_forward": round(found.mean, 3),
        "standard_error": round(found.error, 3),
        "positions": found.positions,
        "tree": acceptance.FULL_TREE,
        "temperature": 0.0,
    }


def tree_samples(texts: Sequence[list[int]], positions: int) -> list[tuple[list[int], list[int]]]:
    """(tokens, increasing lengths of contexts): about `positions` in all, spread over the texts; always the same."""
    shortest, longest = CONTEXTS
    usable = [text[:longest] for text in texts if len(text) >= 2 * shortest]
    if not usable or positions < 1:
        return []
    files = min(len(usable), -(-positions // PER_FILE))
    each = -(-positions // files)
    samples = []
    for number in range(files):
        text = usable[number * len(usable) // files]
        stride = (len(text) - shortest) / each
        shift = (0.5 + 0.618 * number) % 1.0
        lengths = sorted({int(shortest + (index + shift) * stride) for index in range(each)})
        samples.append((text, lengths))
    return samples
