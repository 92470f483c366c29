"""What is known of a topology's devices and of its model, as the planner wants it: from headers, profiles, measurement.

Asked by `flowspec plan`. Loads at most one layer, and only where it is told to measure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from flowspec.errors import ConfigurationError

if TYPE_CHECKING:
    from flowspec.model.curve import Timing
    from flowspec.model.weights import Checkpoint
    from flowspec.planning.division import Device, ModelSizes
    from flowspec.planning.pipe import Curve, DraftTime, LinkTime
    from flowspec.topology import Topology
    from flowspec.topology.profiles import Profile
    from flowspec.topology.sections import NodeEntry

GIGABIT = 940e6 / 8
SWITCH = 0.0003
"""A link of which nothing is known: bytes per second and seconds of Gigabit Ethernet."""

CONTEXT = 4096
"""Tokens for whose caches there has to be memory, where neither a model nor `limits.context` says."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`devices` in pipe order, the draft node first; `assumed` says in words what nobody told, `uncertain` what was
    measured and may be wrong."""

    devices: tuple[Device, ...]
    model: ModelSizes
    links: Callable[[str, str], LinkTime]
    assumed: tuple[str, ...]
    uncertain: tuple[str, ...] = ()


def take_inventory(topology: Topology, *, measure: bool, latency: float | None, rate: float | None) -> Inventory:
    """Everything that there is to know before planning; `latency` (seconds) and `rate` (bytes per second) are those of
    links that the topology does not describe. `ConfigurationError` says what is missing."""
    from flowspec.topology.hosts import canonical_host
    from flowspec.topology.profiles import load_profile
    from flowspec.topology.topology import SYNTHETIC_MODEL

    profile = load_profile(topology.profile) if topology.profile is not None else None
    if topology.model == SYNTHETIC_MODEL:
        if profile is None:
            raise ConfigurationError("the synthetic model has no size", hint="name a profile: `profile: paper-7b`")
        model, token_bytes, here = _sizes_of_profile(profile, topology.limits.context or CONTEXT), 0, None
    else:
        model, token_bytes, here = _sizes_of_checkpoint(topology, measure)
    assumed: list[str] = []
    devices = _devices(topology, profile, model, here)
    if here is not None and len({canonical_host(node.host) for node in topology.nodes}) < len(topology.nodes):
        assumed.append("a machine of its own for every node, though some share one here: those will be slower")
    uncertain: list[str] = []
    if here is not None and here.spread is not None:
        uncertain.append(
            f"this machine was busy while a layer was measured: it took up to {here.spread:.0f} times as long as it "
            "needs; measure again when nothing else runs here"
        )
    links = _links(topology, token_bytes, latency, rate, assumed)
    return Inventory(devices, model, links, tuple(assumed), tuple(uncertain))


# ---- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """What this machine takes for one layer, and for a step of the drafter."""

    layer: Curve
    draft: DraftTime
    spread: float | None = None
    """How many times as long as it needs the layer took, where repetitions disagree; None where they agree."""


def _sizes_of_profile(profile: Profile, context: int) -> ModelSizes:
    from flowspec.planning.division import ModelSizes

    stage = profile.stage
    each = ((stage.weights or 0) + (stage.row_bytes or 0) * context) // stage.layers
    even = ModelSizes.even(stage.layers * profile.stages, each)
    return replace(even, draft_bytes=profile.draft.weights or 0)


def _sizes_of_checkpoint(topology: Topology, measure: bool) -> tuple[ModelSizes, int, Measured | None]:
    """The model's parts, bytes of a hidden state, and what this machine takes, where that is to be measured."""
    from flowspec.cli.models import check_model
    from flowspec.drafting.plan import plan_drafter
    from flowspec.model.hub import resolve_model
    from flowspec.model.layout import DTYPE_BYTES, block_bytes, weight_bytes
    from flowspec.model.weights import Checkpoint
    from flowspec.planning.division import ModelSizes
    from flowspec.planning.pipe import DraftTime

    name = topology.draft_node.model
    check_model(name)
    checkpoint = Checkpoint(resolve_model(name), topology.limits.context)
    dtype = topology.stages[0].dtype
    count = checkpoint.layer_count
    parameters, size = checkpoint.parameters, DTYPE_BYTES[dtype]
    narrow = weight_bytes(checkpoint, 0, count, dtype, topology.stages[0].device)
    typical = sum(parameters.layers) / count
    rows = checkpoint.context_limit
    caches = [min(block_bytes(checkpoint, at, at + 1, dtype).row * rows, topology.limits.memory) for at in range(count)]
    plan = plan_drafter(topology, checkpoint)
    head_work = (parameters.norm + parameters.head) / typical
    model = ModelSizes(
        work=tuple(layer / typical for layer in parameters.layers),
        bytes=tuple(layer * narrow + cache for layer, cache in zip(parameters.layers, caches, strict=True)),
        embedding_bytes=parameters.embedding * narrow,
        head_work=head_work,
        head_bytes=(parameters.norm + parameters.head)
        * (narrow if narrow < size else max(size, DTYPE_BYTES["float32"])),
        draft_bytes=plan.weights + plan.row * rows,
        draft_layers=plan.layers,
    )
    here = None
    if measure:
        timing = _measure_layer(checkpoint, topology)
        layer = tuple(zip(timing.tokens, timing.seconds, strict=True))
        work = plan.weights / (typical * narrow)
        one, two = layer[0][1], layer[1][1]
        step = DraftTime(work * one, work * max(0.0, two - one) / (layer[1][0] - layer[0][0]))
        here = Measured(layer, step, None if timing.certain else timing.spread)
    return model, checkpoint.hidden_size * size, here


def _measure_layer(checkpoint: Checkpoint, topology: Topology) -> Timing:
    """What one layer in the middle takes on this machine, with as many threads as the stage would have here."""
    from flowspec.model.block import LayerBlock
    from flowspec.model.curve import measure_apart
    from flowspec.model.device import find_device

    middle = checkpoint.layer_count // 2
    node = topology.stages[0]
    block = LayerBlock.load(checkpoint, middle, middle + 1, dtype=node.dtype, device=find_device(node.device))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return measure_apart(block, topology.thread_count(node.name, cores))


# ---- the devices -----------------------------------------------------------------------------------------------------


def _devices(
    topology: Topology, profile: Profile | None, model: ModelSizes, here: Measured | None
) -> tuple[Device, ...]:
    entries = {entry.name: entry for entry in topology.nodes}
    names = [topology.draft_node.name, *(stage.name for stage in topology.stages)]
    return tuple(_device(topology, entries[name], profile, model, here) for name in names)


def _device(
    topology: Topology, entry: NodeEntry, profile: Profile | None, model: ModelSizes, here: Measured | None
) -> Device:
    from flowspec.planning.division import Device
    from flowspec.planning.pipe import DraftTime
    from flowspec.planning.sources import draft_time
    from flowspec.topology.profiles import load_profile

    named = entry.emulate.profile if entry.emulate is not None else None
    own = load_profile(named) if named is not None else profile
    slower = 1.0 / (entry.speed or 1.0)
    memory = entry.memory or (own.stage.memory if own is not None else None)
    draft = None
    if entry.emulate is not None and named is None:
        written = entry.emulate.draft
        draft = draft_time(written, model.draft_layers) if written is not None else None
        if entry.role == "stage":
            layers = _held(topology, entry, model)
            line = entry.emulate.base_ms / 1e3, entry.emulate.per_token_ms / 1e3
            return Device(entry.name, _line(*line, layers, 1.0), memory, draft)
        if draft is not None and own is None:
            return Device(entry.name, ((1, inf),), memory, draft)
    if own is not None:
        stage = own.stage
        curve = _line(stage.base_ms / 1e3, stage.per_token_ms / 1e3, stage.layers, slower)
        step = draft_time(own.draft, model.draft_layers)
        step_of = DraftTime(step.base * slower, step.per_token * slower)
        return Device(entry.name, curve, memory, draft or step_of)
    if here is not None:
        curve = tuple((tokens, seconds * slower) for tokens, seconds in here.layer)
        step_of = DraftTime(here.draft.base * slower, here.draft.per_token * slower)
        return Device(entry.name, curve, memory, draft or step_of)
    raise ConfigurationError(
        f"nothing says how fast {entry.name} is",
        hint="measure this machine with --measure (and write `speed:` at nodes that are faster or slower), name a "
        "`profile:`, or write the node's times: `emulate: {base_ms: 60}`",
    )


def _line(base: float, per_token: float, layers: int, slower: float) -> Curve:
    """The curve of one layer, where so many take `base + per_token * tokens`."""
    share = slower / layers
    return (1, (base + per_token) * share), (2, (base + 2 * per_token) * share)


def _held(topology: Topology, entry: NodeEntry, model: ModelSizes) -> int:
    """Layers for which a node's own times are meant: those that it names, else its even share."""
    if isinstance(entry.layers, tuple):
        return entry.layers[1] - entry.layers[0]
    return max(1, round(model.layers / len(topology.stages)))


# ---- the network -----------------------------------------------------------------------------------------------------


def _links(
    topology: Topology, token_bytes: int, latency: float | None, rate: float | None, assumed: list[str]
) -> Callable[[str, str], LinkTime]:
    from flowspec.planning.pipe import LinkTime
    from flowspec.planning.sources import link_time

    unknown = LinkTime(
        SWITCH if latency is None else latency, GIGABIT if rate is None else rate, token_bytes=token_bytes
    )
    described = topology.link is not None or topology.profile is not None
    if not described and (latency is None or rate is None):
        assumed.append(
            f"links of {unknown.latency * 1e3:g} ms and {(unknown.rate or 0.0) * 8 / 1e6:g} Mbit/s where the topology "
            "describes none (--latency, --rate)"
        )

    def link(origin: str, target: str) -> LinkTime:
        found = topology.link_emulation(origin, target)
        return link_time(found, token_bytes) if found is not None else unknown

    return link
