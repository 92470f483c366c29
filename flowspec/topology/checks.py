"""What the nodes and links of a topology have to do with each other: names, roles, ports, layers, hops.

Raises pydantic errors at the key that is to blame; `topology` turns them into `TopologyError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from flowspec.errors import TopologyError
from flowspec.topology.hosts import canonical_host
from flowspec.topology.profiles import load_profile
from flowspec.topology.sections import (
    DEMO_DRAFTERS,
    LAST_PORT,
    WITHOUT_WEIGHTS,
    ModelDrafter,
    NodeEntry,
    refuse,
    show_layers,
)

if TYPE_CHECKING:
    from flowspec.topology.topology import Topology

DRAFT_PORTS = 3
"""Clients (ROUTER), return pipe (PULL), hints (PUB)."""


def port_count(role: str, is_tail: bool) -> int:
    """Consecutive ports that a node takes from `port` on."""
    if role == "draft":
        return DRAFT_PORTS
    return 2 if is_tail else 1


def check_topology(topology: Topology) -> None:
    """Raise at the first thing that does not fit."""
    _check_names(topology.nodes)
    _check_roles(topology.nodes)
    _check_ports(topology.nodes)
    _check_layers([(index, node) for index, node in enumerate(topology.nodes) if node.role == "stage"])
    _check_links(topology)
    _check_spares(topology)
    _check_emulation(topology)
    _check_synthetic(topology)
    drafter = topology.drafter
    kind = (drafter.of or "causal-lm") if drafter.kind == "hybrid" else drafter.kind
    if (
        drafter.model is None
        and kind in get_args(ModelDrafter)
        and not (topology.model == "demo" and kind in DEMO_DRAFTERS)
    ):
        what = "model" if kind == "causal-lm" else "head"
        raise refuse(f"a drafter of kind {drafter.kind} needs the directory of its {what}", "drafter", "model")


def _check_names(nodes: tuple[NodeEntry, ...]) -> None:
    first: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if node.name in first:
            raise refuse(f"{node.name!r} is the name of nodes.{first[node.name]} already", "nodes", index, "name")
        first[node.name] = index


def _check_roles(nodes: tuple[NodeEntry, ...]) -> None:
    drafts = [index for index, node in enumerate(nodes) if node.role == "draft"]
    if not drafts:
        raise refuse("there is no draft node; exactly one node has the role draft", "nodes")
    if len(drafts) > 1:
        names = f"{nodes[drafts[0]].name} and {nodes[drafts[1]].name}"
        raise refuse(f"exactly one node has the role draft, here are two: {names}", "nodes", drafts[1], "role")
    if len(drafts) == len(nodes):
        raise refuse("there is no stage; at least one node has the role stage", "nodes")
    if nodes[drafts[0]].layers != "auto":
        raise refuse("a draft node holds no layers", "nodes", drafts[0], "layers")


def _check_ports(nodes: tuple[NodeEntry, ...]) -> None:
    tail = max(index for index, node in enumerate(nodes) if node.role == "stage")
    ranges: list[range] = []
    for index, node in enumerate(nodes):
        taken = range(node.port, node.port + port_count(node.role, index == tail))
        if taken[-1] > LAST_PORT:
            raise refuse(f"{node.name} takes {_show(taken)}; {LAST_PORT} is the last", "nodes", index, "port")
        for other, theirs in zip(nodes, ranges, strict=False):
            overlap = taken.start < theirs.stop and theirs.start < taken.stop
            if overlap and canonical_host(other.host) == canonical_host(node.host):
                message = f"on {node.host}, {node.name} takes {_show(taken)}, and {other.name} takes {_show(theirs)}"
                raise refuse(message, "nodes", index, "port")
        ranges.append(taken)
    _check_metrics_ports(nodes, ranges)


def _check_metrics_ports(nodes: tuple[NodeEntry, ...], ranges: list[range]) -> None:
    for index, node in enumerate(nodes):
        for place, other in enumerate(nodes):
            if node.metrics_port is None or canonical_host(other.host) != canonical_host(node.host):
                continue
            if node.metrics_port in ranges[place]:
                message = f"{other.name} takes {_show(ranges[place])} on {node.host}"
                raise refuse(message, "nodes", index, "metrics_port")
            if place < index and other.metrics_port == node.metrics_port:
                message = f"{other.name} has port {node.metrics_port} on {node.host} for its metrics"
                raise refuse(message, "nodes", index, "metrics_port")


def _check_spares(topology: Topology) -> None:
    """A spare takes the ports of a tail, since it may have to be one."""
    tail = max(index for index, node in enumerate(topology.nodes) if node.role == "stage")
    taken = [
        (node.name, canonical_host(node.host), range(node.port, node.port + port_count(node.role, index == tail)))
        for index, node in enumerate(topology.nodes)
    ]
    for index, spare in enumerate(topology.spares):
        ports, host = range(spare.port, spare.port + port_count("stage", True)), canonical_host(spare.host)
        if ports[-1] > LAST_PORT:
            raise refuse(f"{spare.name} takes {_show(ports)}; {LAST_PORT} is the last", "spares", index, "port")
        for name, other, theirs in taken:
            if name == spare.name:
                raise refuse(f"{name!r} is the name of another node", "spares", index, "name")
            if other == host and ports.start < theirs.stop and theirs.start < ports.stop:
                message = f"on {spare.host}, {spare.name} takes {_show(ports)}, and {name} takes {_show(theirs)}"
                raise refuse(message, "spares", index, "port")
        taken.append((spare.name, host, ports))


def _show(ports: range) -> str:
    return f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]}-{ports[-1]}"


def _check_layers(stages: list[tuple[int, NodeEntry]]) -> None:
    written = [node for _, node in stages if node.layers != "auto"]
    if not written:
        return
    end, before = 0, "the model"
    for index, node in stages:
        if node.layers == "auto":
            message = f"{node.name} has layers auto but {written[0].name} has {show_layers(written[0].layers)}"
            raise refuse(f"{message}; write the layers of all stages, or of none", "nodes", index, "layers")
        first = node.layers[0]
        if first != end:
            what = "a gap" if first > end else "an overlap"
            begins = f"{before} ends with layer {end - 1}" if end else "the first stage begins with layer 0"
            message = f"{node.name} has the layers {show_layers(node.layers)}, which leaves {what}: {begins}"
            raise refuse(message, "nodes", index, "layers")
        end, before = node.layers[1], node.name


def _check_links(topology: Topology) -> None:
    names = {node.name for node in topology.nodes}
    seen: dict[tuple[str, str], int] = {}
    for index, link in enumerate(topology.links):
        for key, name in (("from", link.origin), ("to", link.target)):
            if name not in names:
                known = ", ".join(node.name for node in topology.nodes)
                raise refuse(f"there is no node {name!r}; known are {known}", "links", index, key)
        hop = (link.origin, link.target)
        if link.origin == link.target:
            raise refuse(f"{link.target} cannot be linked to itself", "links", index, "to")
        if hop in seen:
            raise refuse(f"links.{seen[hop]} is the link from {hop[0]} to {hop[1]} already", "links", index)
        seen[hop] = index


def _check_emulation(topology: Topology) -> None:
    _check_profile(topology.profile, "profile")
    for index, node in enumerate(topology.nodes):
        if node.emulate is None:
            continue
        _check_profile(node.emulate.profile, "nodes", index, "emulate", "profile")
        if node.role == "stage" and node.emulate.draft is not None:
            raise refuse("a stage has no drafter; this belongs to the draft node", "nodes", index, "emulate", "draft")
        if node.role == "draft" and (node.emulate.base_ms or node.emulate.per_token_ms):
            message = "a draft node holds no layers; write the time of a draft step as draft: {base_ms: ...}"
            raise refuse(message, "nodes", index, "emulate")


def _check_profile(name: str | None, *key: str | int) -> None:
    if name is None:
        return
    try:
        load_profile(name)
    except TopologyError as error:
        raise refuse(str(error).replace("\n ", ";"), *key) from None


def _check_synthetic(topology: Topology) -> None:
    """The synthetic model has no weights and no hidden states, and nobody else knows its text."""
    drafter, synthetic = topology.drafter, topology.model == "synthetic"
    for index, node in enumerate(topology.nodes):
        if node.model is not None and (node.model == "synthetic") != synthetic:
            message = f"{node.name} has the model {node.model}, the topology {topology.model}; all nodes have the same"
            raise refuse(message, "nodes", index, "model")
    if not synthetic and topology.synthetic is not None:
        raise refuse(f"belongs to the model synthetic; this one is {topology.model}", "synthetic")
    if not synthetic and drafter.kind == "synthetic":
        message = f"a synthetic drafter knows the text of the model synthetic; this one is {topology.model}"
        raise refuse(message, "drafter", "kind")
    if synthetic and drafter.kind not in ("auto", *WITHOUT_WEIGHTS):
        message = (
            f"the model synthetic has no weights and no hidden states, which a drafter of kind {drafter.kind} reads"
        )
        raise refuse(f"{message}; its drafters are synthetic, ngram and none", "drafter", "kind")
    if synthetic and drafter.model is not None:
        raise refuse("the model synthetic has no draft model", "drafter", "model")
