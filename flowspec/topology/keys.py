"""The section `keys` of a topology: the public keys of nodes, clients and listeners, and where secret ones lie.

Nothing in it is secret. Who may open which channel with which key is decided in `flowspec.transport.access`.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from flowspec.topology.sections import Name, Section, Text, refuse

if TYPE_CHECKING:
    from flowspec.topology.topology import Topology

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""The digits of Z85, in which ZeroMQ writes keys: five of them are four bytes."""

KEY_BYTES = 32

DIRECTORY = "./keys"


def key_bytes(key: str) -> bytes:
    """The bytes of a CURVE key in Z85; `ValueError` when `key` is none."""
    if len(key) * 4 != KEY_BYTES * 5:
        raise ValueError(f"a key has {KEY_BYTES * 5 // 4} characters, not {len(key)}")
    digits = [Z85.index(sign) for sign in key]
    numbers = [reduce(lambda number, digit: number * 85 + digit, digits[at : at + 5]) for at in range(0, len(key), 5)]
    # Five digits can be more than four bytes hold.
    if max(numbers) >= 2**32:
        raise ValueError("its digits are more than its bytes hold")
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def _checked(key: str) -> str:
    try:
        key_bytes(key)
    except ValueError:
        raise refuse(f"{key[:60]!r} is no key: it has 40 characters, which are {KEY_BYTES} bytes in Z85") from None
    return key


PublicKey = Annotated[str, AfterValidator(_checked)]
"""32 bytes in Z85, as ZeroMQ writes CURVE keys."""


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


def check_keys(topology: Topology, *, complete: bool = True) -> None:
    """Raise when a key has two owners, and unless nodes and keys of nodes are the same names, if `complete`."""
    keys = topology.keys
    if keys is None:
        return
    if complete:
        _check_names(topology, keys)
    owners: dict[str, str] = {}
    for kind in ("nodes", "clients", "listeners"):
        for name, key in getattr(keys, kind).items():
            owner = f"{kind}.{name}"
            if owners.setdefault(key, owner) != owner:
                raise refuse(
                    f"this is the key of {owners[key]} already; every owner has a key alone", "keys", kind, name
                )


def _check_names(topology: Topology, keys: Keys) -> None:
    names = [*(entry.name for entry in topology.nodes), *(spare.name for spare in topology.spares)]
    for name in keys.nodes:
        if name not in names:
            message = f"there is no node {name!r}, known are {', '.join(names)}; `flowspec keys` takes out what is gone"
            raise refuse(message, "keys", "nodes", name)
    for name in names:
        if name not in keys.nodes:
            raise refuse(f"{name} has no key; `flowspec keys` makes those that are missing", "keys", "nodes")
