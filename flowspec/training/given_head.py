"""The head that a training begins with: it decides what the new head is made of.

Weights mean nothing without the hidden states, the tokens and the conventions that they were trained with, so these are
the given head's, whatever the text is and whatever new heads are made like. A recipe may add layers, and an embedding
of the head's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_files import StoredHead, stored_head
from flowspec.errors import ConfigurationError
from flowspec.model.weights import Checkpoint
from flowspec.training.recipe import Recipe

ANEW: Final = "leave it out, or train a new head, without --begin"
TOLD_ELSEWHERE: Final = frozenset({"kind", "layer_count", "taps", "draft_vocab_size", "own_embedding", "sharpness"})
"""What is no convention. The sharpness is measured anew at the end."""


def given_head(folder: Path, target: Checkpoint, recipe: Recipe, say: Callable[[str], None]) -> StoredHead:
    """The head in `folder`, made over for what `recipe` adds to it.

    ConfigurationError where the recipe asks for what cannot be added, ModelError when `folder` holds no such head.
    """
    found = stored_head(folder, target, kind=recipe.kind)
    config = found.config
    if recipe.taps not in (None, config.taps):
        raise ConfigurationError(
            f"--taps names {_listed(recipe.taps)}, and the head in {folder} reads {_listed(config.taps)}", hint=ANEW
        )
    if recipe.draft_vocab is not None and min(recipe.draft_vocab, config.vocab_size) != config.draft_vocab_size:
        raise ConfigurationError(
            f"--draft-vocab is {recipe.draft_vocab}, and the head in {folder} has {config.draft_vocab_size} tokens",
            hint=ANEW,
        )
    own = config.own_embedding or recipe.own_embedding
    if own and not recipe.own_embedding:
        say(f"the embedding is trained, too: the head in {folder} has one of its own")
    elif own and not config.own_embedding:
        say("the head gets an embedding of its own, which begins as the model's")
    return replace(found, config=replace(config, layer_count=recipe.layers, own_embedding=own))


def conventions(config: HeadConfig) -> str:
    """All that its weights do not tell of a head, in one line."""
    said = {name: value for name, value in asdict(config).items() if value and name not in TOLD_ELSEWHERE}
    return json.dumps(said, sort_keys=True)


def tokens_digest(target_tokens: torch.Tensor) -> str:
    """Of a draft vocabulary."""
    return hashlib.sha256(target_tokens.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _listed(taps: Any) -> str:
    return ",".join(map(str, taps or ()))
