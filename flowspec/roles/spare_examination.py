"""What a spare says of itself for `flowspec doctor`: could it carry any stage's layers, and reach all neighbours?

Looks at config and headers of the model only; loads nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from flowspec.errors import FlowspecError
from flowspec.model.layout import block_bytes
from flowspec.model.target import Target, open_target
from flowspec.roles.examination import facts_of
from flowspec.roles.introduction import layer_range
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.reach import round_trips
from flowspec.synthetic.model import SyntheticModel
from flowspec.topology import Topology
from flowspec.wire.messages import LinkFacts, SpareFacts

TRIES = 3
"""Connections that are made to each neighbour, one after the other."""


@dataclass(frozen=True, slots=True)
class Burden:
    """The largest block of layers that a spare may have to carry."""

    target: Target
    stage: str
    """Whose layers those are."""
    weights: int
    """Bytes; 0 for the model without weights."""


def largest_burden(topology: Topology, spare: str) -> Burden:
    """Over all stages, each in its dtype. `ModelError` where a model that the spare would need cannot be read."""
    own = topology.spare(spare)
    targets: dict[str, Target] = {}
    burdens = []
    for stage in topology.stages:
        model = (own.model if own is not None else None) or stage.model
        target = targets.get(model)
        if target is None:
            target = targets[model] = open_target(topology, model)
        weights = 0
        if not isinstance(target, SyntheticModel):
            first, end = layer_range(topology, stage.name, target)
            weights = block_bytes(target, first, end, stage.dtype, stage.device).weights
        burdens.append(Burden(target, stage.name, weights))
    return max(burdens, key=lambda burden: burden.weights)


async def examine_spare(
    topology: Topology, name: str, places: Sequence[tuple[str, str]], deadline: float
) -> SpareFacts:
    """`places`: who stands in for whom now. Reads files on a thread of its own, which has `deadline` seconds to end."""
    place = next((stage for stage, spare in places if spare == name), None)
    fingerprint = tokenizer = trouble = ""
    weights = 0
    thread = ComputeThread(f"{name} examination")
    try:
        burden = await thread.run(largest_burden, topology, name)
        fingerprint = await thread.run(burden.target.fingerprint)
        tokenizer = await thread.run(burden.target.tokenizer_hash)
        weights = 0 if place is not None else burden.weights
    except FlowspecError as error:
        trouble = str(error)
    finally:
        await thread.close(deadline)
    links = await _links(topology, name, places)
    facts = replace(facts_of(topology, name, fingerprint, tokenizer), clock=time.time())
    return SpareFacts(facts, place, weights, trouble, links)


async def _links(topology: Topology, name: str, places: Sequence[tuple[str, str]]) -> tuple[LinkFacts, ...]:
    """To every node that a stage in any place sends to: the coordinator, and all stages that are not this one now."""
    now = topology.with_stand_ins(places)
    draft = topology.draft_node
    others = [(draft.name, draft.host, draft.port + 1)]
    others += [(stage.name, stage.host, stage.port) for stage in now.stages if (stage.name, name) not in places]
    trips = await asyncio.gather(*(round_trips(host, port, TRIES) for _, host, port in others))
    return tuple(
        LinkFacts(name, other, median(each) if each else None, None)
        for (other, _, _), each in zip(others, trips, strict=True)
    )
