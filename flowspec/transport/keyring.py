"""The keys of a whole topology: made where they are missing, each secret one in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowspec.errors import SecurityError
from flowspec.transport.keys import KeyFile, KeyPair, read_key_file, secret_path, write_key_file

if TYPE_CHECKING:
    from flowspec.topology import Topology

CLIENT = "client"
"""Name of the client that gets a key when none is named."""


@dataclass(slots=True)
class Keyring:
    """Public keys by kind ("nodes", "clients", "listeners") and name, and which secret keys were written where."""

    directory: Path
    public: dict[str, dict[str, str]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def section(self, directory: str) -> dict[str, Any]:
        """The values of the topology's section `keys`."""
        return {"directory": directory, **{kind: dict(keys) for kind, keys in self.public.items() if keys}}


def make_keys(
    topology: Topology,
    directory: Path,
    *,
    clients: Sequence[str] = (),
    listeners: Sequence[str] = (),
    replace: bool = False,
) -> Keyring:
    """Keys for every node of `topology`, and for these clients and listeners besides those that it has.

    A key that the topology names stays as it is, and so does a file in `directory`, unless `replace`. Raises
    `SecurityError` when a file there is of another key.
    """
    known = topology.keys
    names = {
        "nodes": _node_names(topology),
        "clients": [*(known.clients if known else ()), *clients],
        "listeners": [*(known.listeners if known else ()), *listeners],
    }
    if not names["clients"]:
        names["clients"] = [CLIENT]
    _refuse_twins(names)
    ring = Keyring(directory)
    # The coordinator first: the files of clients name its key.
    names["nodes"].sort(key=lambda name: name != topology.draft_node.name)
    for kind, owners in names.items():
        ring.public[kind] = {}
        for name in dict.fromkeys(owners):
            public = getattr(known, kind).get(name) if known and not replace else None
            coordinator = ring.public["nodes"].get(topology.draft_node.name) if kind == "clients" else None
            ring.public[kind][name] = _provide(ring, name, public, coordinator, replace)
    ring.public["nodes"] = {name: ring.public["nodes"][name] for name in _node_names(topology)}
    return ring


def _node_names(topology: Topology) -> list[str]:
    return [*(entry.name for entry in topology.nodes), *(spare.name for spare in topology.spares)]


def _provide(ring: Keyring, name: str, public: str | None, coordinator: str | None, replace: bool) -> str:
    """The public key of `name`, made now if there is none yet."""
    path = secret_path(ring.directory, name)
    if path.exists() and not replace:
        found = read_key_file(path)
        own, asked = found.pair.public.decode(), found.coordinator.decode() if found.coordinator else None
        if (public not in (None, own)) or coordinator != asked:
            raise SecurityError(
                f"{path} is a key of another topology, or of an older state of this one",
                hint="--force makes all keys anew; then every device needs its new file, and the new topology",
            )
        return own
    if public is not None:
        return public
    pair = KeyPair.generate()
    write_key_file(path, KeyFile(name, pair, coordinator.encode() if coordinator else None), replace=replace)
    ring.written.append(path)
    return pair.public.decode()


def _refuse_twins(names: dict[str, list[str]]) -> None:
    """One name, one file, one owner."""
    owners: dict[str, str] = {}
    for kind, found in names.items():
        for name in found:
            if owners.setdefault(name, kind) != kind:
                raise SecurityError(f"{name!r} would be the name of two keys, among {owners[name]} and {kind}")
