"""Are the models of a topology whole? Asked before anything is started, by reading configs and headers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowspec.errors import ModelError

if TYPE_CHECKING:
    from flowspec.topology import Topology


def check_models(topology: Topology) -> None:
    """Raise `ModelError` or `TopologyError` when a model that a node of `topology` will load here cannot be used."""
    from flowspec.topology.topology import SYNTHETIC_MODEL

    if topology.model == SYNTHETIC_MODEL:
        from flowspec.synthetic.model import SyntheticModel

        topology.check_layers(SyntheticModel(topology).layer_count)
        return
    for name in dict.fromkeys(node.model for node in (topology.draft_node, *topology.stages)):
        layers = check_model(name)
        topology.check_layers(layers)
    drafter = topology.effective_drafter
    if drafter.model_kind == "causal-lm" and drafter.model not in (None, "demo"):
        check_model(str(drafter.model))
    elif drafter.model_kind in ("eagle", "eagle3"):
        from flowspec.drafting.plan import plan_drafter
        from flowspec.model.hub import resolve_model
        from flowspec.model.weights import Checkpoint

        plan_drafter(topology, Checkpoint(resolve_model(topology.draft_node.model), topology.limits.context))


def check_model(name: str) -> int:
    """The number of layers of the model `name` (see `resolve_model`), whose files are all whole."""
    from flowspec.model.hub import hub_origin, resolve_model
    from flowspec.model.weights import Checkpoint, read_header

    checkpoint = Checkpoint(resolve_model(name))
    fetchable = hub_origin(checkpoint.path) is not None
    for file in sorted(set(checkpoint.files.values())):
        if (checkpoint.path / file).is_file() or not fetchable:
            read_header(checkpoint.path / file)
    if not checkpoint.tokenizer_hash():
        raise ModelError(
            f"{checkpoint.path} has no tokenizer", hint="copy the model's tokenizer.json beside its weights"
        )
    layers = checkpoint.raw_config.get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        raise ModelError(f"{checkpoint.path / 'config.json'} names no number of layers")
    return layers
