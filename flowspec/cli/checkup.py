"""What can be found out about a topology from one machine: versions, keys, names, ports, models, memory, reach.

Each check returns findings, and starts nothing. What only the running nodes know is `flowspec.cli.doctor`'s to ask.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from flowspec.errors import FlowspecError

if TYPE_CHECKING:
    from flowspec.model.target import Target
    from flowspec.topology import Node, Topology

State = Literal["ok", "warning", "bad"]
LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do; empty when nothing needs to be done."""

    check: str
    subject: str
    state: State
    found: str
    advice: str = ""


def nodes_of(topology: Topology) -> list[Node]:
    return [topology.draft_node, *topology.stages]


def spares_of(topology: Topology) -> list[Node]:
    """Spares as nodes: where they would listen if they stood in for the tail, which takes most ports."""
    return [
        replace(
            topology.tail,
            name=spare.name,
            role="spare",
            host=spare.host,
            port=spare.port,
            bind=spare.bind or spare.host,
            layers=None,
            device=spare.device or topology.device,
            dtype=topology.dtype,
            model=spare.model or topology.model,
        )
        for spare in topology.spares
    ]


def everybody(topology: Topology) -> list[Node]:
    return [*nodes_of(topology), *spares_of(topology)]


def check_versions(topology: Topology) -> Iterator[Finding]:
    from flowspec.runtime.reach import has_curve, versions
    from flowspec.wire.messages import PROTOCOL_VERSION

    found = ", ".join(f"{name} {version}" for name, version in sorted(versions().items()))
    yield Finding("versions", "this machine", "ok", f"{found}, protocol {PROTOCOL_VERSION}")
    if topology.keys is not None and not has_curve():
        advice = "install a build of pyzmq that comes with libsodium"
        yield Finding(
            "versions", "this machine", "bad", "this ZeroMQ cannot encrypt, and the topology has keys", advice
        )


def check_keys(topology: Topology, here: set[str]) -> Iterator[Finding]:
    """`here`: the nodes of this machine, whose secret keys must lie here."""
    if topology.keys is None:
        yield from _without_keys(topology)
        return
    from flowspec.transport.access import Access
    from flowspec.transport.keys import secret_path

    foreign = []
    for node in everybody(topology):
        path = secret_path(topology.keys.directory, node.name)
        if node.name in here:
            try:
                Access.of(topology, node.name)
            except FlowspecError as error:
                yield Finding("keys", node.name, "bad", error.message, error.hint or "")
            else:
                yield Finding("keys", node.name, "ok", f"{path.name} is the node's own, and nobody else's to read")
        elif path.exists():
            foreign.append(node.name)
    if foreign:
        found = f"secret keys of other machines' nodes lie here: {', '.join(foreign)}"
        advice = "take each to its device, and remove it here"
        yield Finding("keys", "this machine", "warning", found, advice)
    if not topology.keys.clients:
        advice = "flowspec keys TOPOLOGY --client NAME"
        yield Finding("keys", "clients", "warning", "no client has a key, so nobody can ask for text", advice)


def _without_keys(topology: Topology) -> Iterator[Finding]:
    exposed = [node for node in everybody(topology) if not node.bind.startswith(LOOPBACK)]
    if not exposed:
        yield Finding("keys", "all nodes", "ok", "no keys, and none needed: all of them listen on this machine alone")
        return
    names = ", ".join(node.name for node in exposed)
    advice = "flowspec keys TOPOLOGY makes keys"
    if topology.insecure:
        found = f"{names} listen to everybody without keys (insecure: true)"
        yield Finding("keys", "all nodes", "warning", found, advice)
    else:
        yield Finding("keys", "all nodes", "bad", f"{names} would listen to everybody, and refuse to start", advice)


def check_names(topology: Topology) -> Iterator[Finding]:
    for host in dict.fromkeys(node.host for node in everybody(topology)):
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            advice = "write an address in the topology, or add the name to the network's names or /etc/hosts"
            yield Finding("names", host, "bad", f"is not known here: {error}", advice)
            continue
        places = list(dict.fromkeys(str(place[4][0]) for place in found))
        addresses = ", ".join(places)
        if host == addresses:
            yield Finding("names", host, "ok", "an address")
        elif not topology.is_local() and all(place.startswith(LOOPBACK) for place in places):
            advice = "write the device's address in the network as `host`, or `bind: 0.0.0.0` on that device"
            yield Finding("names", host, "bad", f"is {addresses} here, which no other machine can reach", advice)
        else:
            yield Finding("names", host, "ok", addresses)


def check_ports(topology: Topology, here: set[str], running: set[str]) -> Iterator[Finding]:
    """`running`: nodes that answered, so that taken ports are their own."""
    for node in everybody(topology):
        if node.name not in here:
            continue
        taken = [port for port in range(node.port, node.port + node.ports) if not _free(node, port)]
        if node.name in running:
            yield Finding("ports", node.name, "ok", f"the node runs, on port {node.port}")
        elif taken:
            ports = ", ".join(map(str, taken))
            advice = "is the node running and waiting for others? else stop that program, or write another `port`"
            yield Finding("ports", node.name, "warning", f"taken by some program: {ports}", advice)
        else:
            yield Finding("ports", node.name, "ok", f"free: {node.port}-{node.port + node.ports - 1}")


def _free(node: Node, port: int) -> bool:
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            None if node.bind == "*" else node.bind.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # As ZeroMQ does: connections that have just ended are in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError:
        return False
    return True


def check_models(topology: Topology, here: set[str], running: set[str]) -> Iterator[Finding]:
    """Model, tokenizer and memory of the nodes of this machine that do not run yet."""
    from flowspec.cli.render import size
    from flowspec.model.device import find_device
    from flowspec.model.target import open_target
    from flowspec.runtime.reach import memory
    from flowspec.topology.topology import SYNTHETIC_MODEL

    prints: dict[tuple[str, str], list[str]] = {}
    needed = 0
    for node in everybody(topology):
        if node.name not in here or node.name in running:
            continue
        try:
            target = open_target(topology, node.model)
            if topology.model != SYNTHETIC_MODEL:
                find_device(node.device)
            key = (target.fingerprint()[:12], target.tokenizer_hash()[:12])
            weights = _weights(topology, node, target)
        except FlowspecError as error:
            yield Finding("model", node.name, "bad", error.message, error.hint or "")
            continue
        prints.setdefault(key, []).append(node.name)
        needed += weights
        most = "may need" if node.role == "spare" else "needs"
        yield Finding(
            "memory", node.name, "ok", f"{most} {size(weights)}, and up to {size(topology.limits.memory)} of caches"
        )
    if len(prints) > 1:
        found = "; ".join(f"{', '.join(names)}: model {key[0]}, tokenizer {key[1]}" for key, names in prints.items())
        yield Finding("model", "this machine", "bad", f"the nodes would not fit: {found}", "give all nodes one model")
    elif prints:
        ((model, tokenizer), names) = next(iter(prints.items()))
        advice = "" if topology.is_local() else "compare with what the doctor says on the other devices"
        yield Finding("model", ", ".join(names), "ok", f"model {model}, tokenizer {tokenizer}", advice)
    _, free = memory()
    if needed and free:
        state: State = "bad" if needed > free else "ok"
        advice = "give this machine fewer layers or nodes" if state == "bad" else ""
        yield Finding(
            "memory", "this machine", state, f"{size(free)} are free, the weights need {size(needed)}", advice
        )


def _weights(topology: Topology, node: Node, target: Target) -> int:
    """Bytes that the node will load, a spare at most; the synthetic model has none."""
    from flowspec.drafting.plan import plan_drafter
    from flowspec.model.layout import block_bytes
    from flowspec.roles.introduction import layer_range
    from flowspec.roles.spare_examination import largest_burden
    from flowspec.synthetic.model import SyntheticModel

    if isinstance(target, SyntheticModel):
        return 0
    if node.role == "spare":
        return largest_burden(topology, node.name).weights
    if node.role == "draft":
        return plan_drafter(topology, target).weights
    first, end = layer_range(topology, node.name, target)
    return block_bytes(target, first, end, node.dtype, node.device).weights


async def check_reach(topology: Topology, here: set[str]) -> list[Finding]:
    """Whether the nodes of other machines can be reached from this one. A spare that stands by listens nowhere."""
    from flowspec.runtime.reach import round_trips

    findings = []
    for node in nodes_of(topology):
        if node.name in here:
            continue
        for port in range(node.port, node.port + node.ports):
            times = await round_trips(node.host, port)
            where = f"{node.host}:{port}"
            if times:
                findings.append(Finding("reach", node.name, "ok", f"{where} answers after {min(times) * 1000:.2f} ms"))
            else:
                advice = "is the node running, and does a firewall let this machine in?"
                findings.append(Finding("reach", node.name, "warning", f"nobody answers at {where}", advice))
    return findings
