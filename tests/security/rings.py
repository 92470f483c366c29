"""Topologies with fresh keys, and sockets for each of their owners."""

from __future__ import annotations

from pathlib import Path

from flowspec.topology import Topology
from flowspec.transport.keyring import make_keys
from flowspec.transport.keys import KeyFile, KeyPair, read_key_file, secret_path
from flowspec.transport.zeromq import ZeroMQTransport


def with_keys(topology: Topology, directory: Path, **more: tuple[str, ...]) -> Topology:
    return topology.replace(keys=make_keys(topology, directory, **more).section(str(directory)))  # type: ignore[arg-type]


def transport_of(topology: Topology, name: str) -> ZeroMQTransport:
    """For `connect_client` with the key of `name`, whoever that is."""
    assert topology.keys is not None
    pair = read_key_file(secret_path(topology.keys.directory, name)).pair
    return with_pair(topology, pair)


def with_pair(topology: Topology, pair: KeyPair, *, coordinator: str | None = None) -> ZeroMQTransport:
    assert topology.keys is not None
    server = coordinator or topology.keys.nodes[topology.draft_node.name]
    return ZeroMQTransport(client_key=KeyFile("whoever", pair, server.encode()))
