"""The section `keys` of a topology: the public keys of nodes, clients and listeners, and where secret ones lie.

Nothing in it is secret. Who may open which channel with which key is decided in `flowspec.transport.access`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flowspec.topology.sections import Name, Section, Text, refuse

if TYPE_CHECKING:
    from flowspec.topology.topology import Topology

PublicKey = Annotated[str, Field(pattern=r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]
"""32 bytes in Z85, as ZeroMQ writes CURVE keys."""

DIRECTORY = "./keys"


class Keys(Section):
    """Each by name. With this section every connection is encrypted, and both ends show that they have their key."""

    nodes: dict[Name, PublicKey] = Field(default={})
    """Of every node of the topology, spares included."""
    clients: dict[Name, PublicKey] = Field(default={})
    """Who may ask for text; the names are for logs."""
    listeners: dict[Name, PublicKey] = Field(default={})
    """Who may hear the broadcasts, and nothing else."""
    directory: Text = DIRECTORY
    """Where each device keeps its own secret key, as NAME.secret."""

    def __hash__(self) -> int:
        return hash((*self.nodes.items(), *self.clients.items(), *self.listeners.items(), self.directory))


def check_keys(topology: Topology) -> None:
    """Raise unless every node has a key, and no key has two owners."""
    keys = topology.keys
    if keys is None:
        return
    names = [*(entry.name for entry in topology.nodes), *(spare.name for spare in topology.spares)]
    for name in keys.nodes:
        if name not in names:
            raise refuse(f"there is no node {name!r}; known are {', '.join(names)}", "keys", "nodes", name)
    for name in names:
        if name not in keys.nodes:
            raise refuse(f"{name} has no key; `flowspec keys` makes those that are missing", "keys", "nodes")
    owners: dict[str, str] = {}
    for kind in ("nodes", "clients", "listeners"):
        for name, key in getattr(keys, kind).items():
            owner = f"{kind}.{name}"
            if owners.setdefault(key, owner) != owner:
                raise refuse(
                    f"this is the key of {owners[key]} already; every owner has a key alone", "keys", kind, name
                )
