"""EAGLE heads as students: unrolled over their own states, read by the target's LM head or their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from flowspec.drafting.drafter import Drafter
from flowspec.drafting.eagle3 import Eagle3Head
from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_files import load_head, new_head, save_head
from flowspec.drafting.taps import check_taps, default_taps
from flowspec.errors import ConfigurationError, InvariantViolation
from flowspec.model.weights import Checkpoint
from flowspec.training.divergence import LinearHead
from flowspec.training.given_head import conventions, tokens_digest
from flowspec.training.student import take_weights
from flowspec.training.target import Observed, Target
from flowspec.training.unrolled import unroll
from flowspec.wire.messages import FINAL


class HeadStudent:
    """Implements `Student`. `feature_weight` is that of EAGLE-1's feature regression, for heads that read `FINAL`."""

    def __init__(self, head: DraftHead, target: Checkpoint, steps: int, feature_weight: float = 0.0) -> None:
        self._head = head
        self.steps = steps
        self.taps = head.taps
        self.target_tokens = head.target_tokens
        self.feature_weight = feature_weight if head.kind == "eagle" and head.taps == (FINAL,) else 0.0
        self._target = target

    @property
    def module(self) -> DraftHead:
        return self._head

    @property
    def head(self) -> LinearHead:
        return LinearHead(self._head.lm_head.weight, self._head.lm_head.bias)

    @property
    def identity(self) -> dict[str, Any]:
        tokens = self.target_tokens
        digest = None if tokens is None else tokens_digest(tokens)
        return {"draft vocabulary's tokens": digest, "conventions": conventions(self._head.config)}

    def begin(self, folder: Path) -> None:
        given = load_head(folder, self._target, kind=self._head.kind)
        if given.taps != self.taps or not _equal(given.target_tokens, self.target_tokens):
            raise InvariantViolation(f"the head in {folder} has other taps or tokens than the one that begins with it")
        further = range(given.layer_count, self._head.layer_count)
        take_weights(self._head, given, folder, new=tuple(f"layers.{index}." for index in further))
        for layer in self._head.stack[given.layer_count :]:
            layer.silence()

    def states(self, tokens: torch.Tensor, observed: Observed) -> torch.Tensor:
        rows = [
            functional.pad(self._read_by_head(states), (0, 0, step + 1, 0))
            for step, states in enumerate(unroll(self._head, tokens, observed.features, self.steps))
        ]
        return torch.stack(rows)

    def _read_by_head(self, states: torch.Tensor) -> torch.Tensor:
        head = self._head
        if isinstance(head, Eagle3Head) and not head.config.norm_output:
            normed: torch.Tensor = head.norm(states)
            return normed
        return states

    def extra_loss(self, states: torch.Tensor, observed: Observed, weights: torch.Tensor) -> torch.Tensor | None:
        """EAGLE-1's regression of the target's hidden states (arXiv:2401.15077): smooth L1, per element."""
        if not self.feature_weight:
            return None
        wanted = observed.final.float().expand_as(states)
        each = functional.smooth_l1_loss(states.float(), wanted, reduction="none").mean(-1)
        return self.feature_weight * (each * weights).sum()

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        self._head.config = replace(self._head.config, sharpness=facts["sharpness"])
        save_head(self._head, folder, dtype=torch.bfloat16)

    def drafter(self, folder: Path, device: str) -> Drafter:
        from flowspec.drafting.head_drafter import HeadDrafter

        return HeadDrafter(load_head(folder, self._target, kind=self._head.kind, device=device))


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one.cpu(), other.cpu())


def head_taps(kind: str, layer_count: int, chosen: tuple[int, ...] | None, where: Path) -> tuple[int, ...]:
    """The hidden states that a new head reads: those that were chosen, or its kind's own."""
    hint = f"--taps names inputs of layers, 0 to {layer_count} (the last one's output); {FINAL} is after the last norm"
    if chosen is None:
        chosen = (FINAL,) if kind == "eagle" else default_taps(layer_count)
    if kind == "eagle" and len(chosen) != 1:
        raise ConfigurationError(f"an eagle head reads one hidden state, not {len(chosen)}", hint="eagle3 reads three")
    return check_taps(chosen, layer_count, where, hint)


def build_student(
    config: HeadConfig,
    target: Target,
    *,
    steps: int,
    target_tokens: torch.Tensor | None,
    feature_weight: float,
    seed: int,
    device: torch.device,
) -> HeadStudent:
    """A new head with random layers; embedding, LM head and last norm start as the target's, where they fit."""
    head = new_head(config, target.checkpoint, target_tokens=target_tokens, device=device, seed=seed)
    _begin_as_target(head, target.model)
    head.train()
    return HeadStudent(head, target.checkpoint, steps, feature_weight)


@torch.no_grad()
def _begin_as_target(head: DraftHead, model: Any) -> None:
    """Own embedding, LM head and last norm start as the target's; what is borrowed is the very tensor of `model`."""
    embedding = model.model.embed_tokens.weight
    if head.config.hidden_size != head.config.target_hidden_size:
        return
    if head.config.own_embedding:
        head.embed_tokens.weight.copy_(embedding)
    else:
        head.embed_tokens.weight = embedding
    if isinstance(head, Eagle3Head):
        tokens = head.target_tokens
        head.lm_head.weight.copy_(model.lm_head.weight if tokens is None else model.lm_head.weight[tokens])
        head.norm.weight.copy_(model.model.norm.weight)
    else:
        head.lm_head.weight = model.lm_head.weight


def frequent_tokens(
    counts: np.ndarray[Any, np.dtype[np.int64]], size: int, always: tuple[int, ...] = ()
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The `size` most frequent tokens, increasing; those of `always` are among them."""
    ranked = counts.astype(np.float64)
    ranked[list(always)] = np.inf
    found: np.ndarray[Any, np.dtype[np.int64]] = np.sort(np.argsort(-ranked, kind="stable")[:size]).astype(np.int64)
    return found
