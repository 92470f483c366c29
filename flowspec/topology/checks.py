"""What the nodes and links of a topology have to do with each other: names, roles, ports, layers, hops.

Raises pydantic errors at the key that is to blame; `topology` turns them into `TopologyError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from flowspec.topology.hosts import canonical_host
from flowspec.topology.sections import DEMO_DRAFTERS, LAST_PORT, ModelDrafter, NodeEntry, refuse, show_layers

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
