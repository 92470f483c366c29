"""The model of a topology, before it is loaded: a checkpoint on disk, or the synthetic one."""

from __future__ import annotations

from typing import Any

from flowspec.model.hub import resolve_model
from flowspec.model.text import load_tokenizer
from flowspec.model.weights import Checkpoint
from flowspec.synthetic.model import SyntheticModel
from flowspec.topology import Topology
from flowspec.topology.topology import SYNTHETIC_MODEL

Target = Checkpoint | SyntheticModel


def open_target(topology: Topology, model: str) -> Target:
    """The model that a node of `topology` calls by this name. `ModelError` says what is wrong with it."""
    if model == SYNTHETIC_MODEL:
        return SyntheticModel(topology)
    return Checkpoint(resolve_model(model), topology.limits.context)


def tokenizer_of(target: Target) -> Any:
    """Its tokenizer, in the form of Hugging Face's fast ones."""
    return load_tokenizer(target.path) if isinstance(target, Checkpoint) else target.tokenizer
