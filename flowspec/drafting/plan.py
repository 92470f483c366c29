"""What a drafter will hold, told from configs and headers alone: nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowspec.drafting.drafter import check_vocabulary
from flowspec.errors import ModelError
from flowspec.model.hub import resolve_model
from flowspec.model.layout import DTYPE_BYTES, block_bytes
from flowspec.model.weights import TOKENIZER_FILES, Checkpoint
from flowspec.topology import Topology
from flowspec.topology.sections import ModelDrafter


@dataclass(frozen=True, slots=True)
class DrafterPlan:
    """In bytes. A drafter shares no memory with a stage: its copies of the target's weights count."""

    kind: str
    layers: int = 0
    weights: int = 0
    vocabulary: int = 0
    """Of `weights`: embedding, final norm and LM head."""
    copied: int = 0
    """Of `weights`: what is the target's."""
    row: int = 0
    """A cache row."""
    taps: tuple[int, ...] = ()


def kind_in(model: str) -> ModelDrafter:
    """The kind of drafter whose weights `model` names, as a topology does; "causal-lm" for whatever is no draft head.

    ModelError when there is no such model, or when what seems to be a head cannot be read.
    """
    from flowspec.drafting.head_folder import HeadFolder, says_head
    from flowspec.drafting.head_settings import kind_told

    folder = resolve_model(model)
    of_head = says_head(folder)
    try:
        found = HeadFolder(folder)
    except ModelError:
        # An EAGLE-1/2 head's config says nothing of itself; but heads have no tokenizer.
        if of_head or not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise
        return "causal-lm"
    if not of_head and "fc.weight" not in found.names:
        return "causal-lm"
    return "eagle3" if kind_told(folder, found.config, found.sidecar, found.names) == "eagle3" else "eagle"


def plan_drafter(topology: Topology, target: Checkpoint) -> DrafterPlan:
    """The plan of the topology's drafter; ModelError where its folder does not fit `target`."""
    chosen = topology.effective_drafter
    kind, name = chosen.model_kind, chosen.model_name
    if kind is None or name is None:
        return DrafterPlan(chosen.kind)
    shown = chosen.kind if chosen.kind == kind else f"{chosen.kind} of ngram and {kind}"
    dtype = topology.draft_node.dtype
    if kind != "causal-lm":
        return _plan_head(topology, target, shown)
    model = Checkpoint(resolve_model(name))
    check_vocabulary(model, target)
    held = block_bytes(model, 0, model.layer_count, dtype, topology.draft_node.device)
    layers = sum(model.parameters.layers) * DTYPE_BYTES[dtype]
    return DrafterPlan(shown, model.layer_count, held.weights, held.weights - layers, 0, held.row)


def _plan_head(topology: Topology, target: Checkpoint, shown: str) -> DrafterPlan:
    from flowspec.drafting.head_files import (
        borrowed,
        build_head,
        check_tensors,
        read_config,
        target_shape,
        weight_dtype,
    )
    from flowspec.drafting.head_folder import HeadFolder

    chosen = topology.effective_drafter
    assert chosen.model_name is not None
    dtype: torch.dtype = getattr(torch, topology.draft_node.dtype)
    folder = HeadFolder(resolve_model(chosen.model_name))
    config = read_config(folder, target_shape(target), kind=chosen.model_kind, taps=chosen.taps)
    check_tensors(folder, config)
    with torch.device("meta"):
        head = build_head(config)
    sizes = {name: value.numel() * weight_dtype(name, dtype).itemsize for name, value in head.state_dict().items()}
    copies = borrowed(config)
    if (
        target.tied
        and {"embed_tokens.weight", "lm_head.weight"} <= copies
        and weight_dtype("lm_head.weight", dtype) == dtype
    ):
        # One copy serves as both.
        del sizes["lm_head.weight"]
    last = ("embed_tokens.", "lm_head.", "norm.")
    return DrafterPlan(
        shown,
        config.layer_count,
        sum(sizes.values()),
        sum(size for name, size in sizes.items() if name.startswith(last)),
        sum(size for name, size in sizes.items() if name in copies),
        2 * config.layer_count * config.kv_heads * config.head_dim * dtype.itemsize,
        config.taps,
    )
