"""Which key opens which channel: the rules of docs/security.md, made of a topology and the secret key of one process.

    channel    bound by        opened by the keys of
    clients    coordinator     clients
    return     coordinator     stages, spares
    hints      coordinator     stages, spares, listeners
    forward    a stage         the node before it, spares
    verdicts   the tail        the other stages, spares, listeners

Whoever connects checks the key of the one who is bound, too. A spare may stand in for any stage, and so speak for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowspec.errors import SecurityError
from flowspec.topology import address as address_of
from flowspec.transport.keys import KeyFile, KeyPair, read_key_file, secret_path

if TYPE_CHECKING:
    from flowspec.topology import Topology

CLIENT_KEY = "FLOWSPEC_KEY"
"""Environment variable: path of the key file of the client that runs here."""

NODE_KEY = "FLOWSPEC_NODE_KEY"
"""Environment variable: path of the key file of the node that runs here, in place of the topology's directory."""

Door = dict[bytes, str]
"""Public keys (Z85) that open a channel, with the names of their owners."""


@dataclass(frozen=True, slots=True)
class Access:
    """What the owner of `pair` needs to know to open its channels."""

    topology: Topology
    pair: KeyPair

    @classmethod
    def of(cls, topology: Topology, name: str, *, owner: str | None = None) -> Access | None:
        """The access of a node or listener; None when the topology has no keys. Raises `SecurityError`.

        `owner`: whose file it is, if another's: that of the spare that stands in for `name`.
        """
        if topology.keys is None:
            return None
        path = os.environ.get(NODE_KEY) or secret_path(topology.keys.directory, owner or name)
        found = read_key_file(path)
        public = (topology.keys.nodes | topology.keys.listeners).get(name)
        if public is None:
            raise SecurityError(
                f"the topology has no key for {name}", hint="`flowspec keys` makes those that are missing"
            )
        if found.pair.public != public.encode():
            raise SecurityError(
                f"the key in {path} is not the one that the topology has for {name}",
                node=name,
                hint=f"it says that it is the key of {found.name}; every device keeps the file of its own node",
            )
        return cls(topology, found.pair)

    def key_of(self, node: str) -> bytes:
        """The public key of a node: what it must show when it is connected to."""
        assert self.topology.keys is not None
        return self.topology.keys.nodes[node].encode()

    def key_at(self, address: str) -> bytes:
        """The public key of the stage or spare that takes segments at `address`."""
        topology = self.topology
        names = {topology.forward_address(index): stage.name for index, stage in enumerate(topology.stages)}
        names |= {address_of(spare.host, spare.port): spare.name for spare in topology.spares}
        return self.key_of(names[address])

    @property
    def deputies(self) -> frozenset[str]:
        """Who may speak for any stage."""
        return frozenset(spare.name for spare in self.topology.spares)

    def clients(self) -> Door:
        assert self.topology.keys is not None
        return {key.encode(): name for name, key in self.topology.keys.clients.items()}

    def returns(self) -> Door:
        return {self.key_of(stage.name): stage.name for stage in self.topology.stages} | self._spares()

    def hints(self) -> Door:
        return self.returns() | self._listeners()

    def forward(self, index: int) -> Door:
        """Of the stage at `index`."""
        if index == 0:
            return {self.key_of(self.topology.draft_node.name): self.topology.draft_node.name}
        before = self.topology.stages[index - 1].name
        return {self.key_of(before): before} | self._spares()

    def verdicts(self) -> Door:
        others = self.topology.stages[:-1]
        return {self.key_of(stage.name): stage.name for stage in others} | self._spares() | self._listeners()

    def _spares(self) -> Door:
        return {self.key_of(spare.name): spare.name for spare in self.topology.spares}

    def _listeners(self) -> Door:
        assert self.topology.keys is not None
        return {key.encode(): name for name, key in self.topology.keys.listeners.items()}


def client_key(path: str | os.PathLike[str]) -> KeyFile:
    """The key of a client, which says whom it talks to. Raises `SecurityError`."""
    found = read_key_file(path)
    if found.coordinator is None:
        raise SecurityError(
            f"{path} is no client's key: it does not say which coordinator it is for",
            hint="`flowspec keys TOPOLOGY --client NAME` makes one; nodes have keys of another kind",
        )
    return found


def find_client_key(topology: Topology) -> Path | None:
    """The key file of a client that lies here: that of the environment, or the topology's first one; None: neither."""
    if topology.keys is None:
        return None
    if os.environ.get(CLIENT_KEY):
        return Path(os.environ[CLIENT_KEY])
    paths = (secret_path(topology.keys.directory, name) for name in topology.keys.clients)
    return next((path for path in paths if path.is_file()), None)
