"""How good a draft is on held-out text, step by step, with the text's own tokens before every guess.

Agreement is the share of positions at which the target's first choice is among the draft's first k; beside it stand
the divergence, and how often both would draw one token. What a draft is worth in a tree says `acceptance_length`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from flowspec.drafting import acceptance
from flowspec.drafting.drafter import Drafter
from flowspec.model.block import LayerBlock
from flowspec.model.weights import Checkpoint
from flowspec.training.coupling import coupled_likeliest
from flowspec.training.guesses import Guesses, guesses_of
from flowspec.training.student import Student
from flowspec.training.target import Target
from flowspec.training.windows import TokenFile
from flowspec.wire.parameters import SamplingParameters

TOP: Final = (1, 2, 4)
PER_FILE: Final = 4
CONTEXTS: Final = (64, 1000)
"""Shortest and longest context of a tree, in tokens."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one draft step, means over positions."""

    divergence: float
    """In nats."""
    alike: float
    """The probability that target and draft draw the same token with the same noise, at temperature 1."""
    top: dict[int, float]
    """For k of `TOP` the share of positions."""


@torch.no_grad()
def agreement(
    student: Student, target: Target, windows: torch.Tensor, *, dtype: torch.dtype, batch: int = 8
) -> list[Agreement]:
    """Per draft step, over all `windows` (count, length + 1). What a draft's vocabulary lacks is never drawn alike."""
    rows = torch.zeros(student.steps)
    sums = torch.zeros(student.steps, 2 + len(TOP))
    for each in guesses_of(student, target, windows, dtype=dtype, batch=batch):
        counted = each.counted.float()
        rows += counted.sum(-1).cpu()
        sums += torch.stack([(figure * counted).sum(-1) for figure in _figures(each, student)], dim=-1).cpu()
    means = (sums / rows[:, None]).tolist()
    return [Agreement(step[0], step[1], dict(zip(TOP, step[2:], strict=True))) for step in means]


def _figures(each: Guesses, student: Student) -> list[torch.Tensor]:
    """What `Agreement` has means of, in its order: (steps, positions) each."""
    tokens = student.target_tokens
    wanted, share = each.wanted.log_softmax(-1), torch.ones(())
    first = each.guessed.topk(max(TOP), dim=-1).indices
    if tokens is not None:
        share = wanted[:, tokens].exp().sum(-1)
        wanted = wanted[:, tokens].log_softmax(-1)
        first = tokens[first]
    right = first == each.wanted.argmax(-1)[None, :, None]
    guessed = each.guessed.log_softmax(-1)
    likely = wanted.exp()
    divergence = torch.einsum("pv,spv->sp", likely, wanted - guessed)
    alike, _ = coupled_likeliest(likely, guessed.exp())
    return [divergence * share, alike * share, *(right[..., :k].any(-1).float() for k in TOP)]


def described(found: Sequence[Agreement]) -> str:
    """Per draft step how often the first guess was right, and how often a draw with the same noise would be."""
    shares, alike = _percents(step.top[1] for step in found), _percents(step.alike for step in found)
    return (
        f"held-out text: divergence {found[0].divergence:.4f}; by draft step, first guess right {shares} %, "
        f"drawn alike {alike} %"
    )


def _percents(shares: Iterable[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares)


def table(found: Sequence[Agreement]) -> list[dict[str, Any]]:
    """The same as values for JSON."""
    return [
        {
            "step": step,
            "divergence": round(each.divergence, 4),
            "alike": round(each.alike, 4),
            **{f"top{k}": round(v, 4) for k, v in each.top.items()},
        }
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
