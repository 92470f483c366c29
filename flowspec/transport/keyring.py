"""The keys of a whole topology: those that it has, those that are missing made, and each secret one in its own file.

What is to be is decided in memory first (`Keyring.of`): whoever writes a topology file knows then what will stand in
it, and writes secret keys when it is certain that it can (`Keyring.placed`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowspec.errors import SecurityError
from flowspec.topology import Keys
from flowspec.transport.keys import KeyFile, KeyPair, placed, read_key_file, secret_path

if TYPE_CHECKING:
    from flowspec.topology import Topology

CLIENT = "client"
"""Name of the client that gets a key in a topology without any keys, when none is named."""


@dataclass(slots=True)
class Keyring:
    """Public keys by kind ("nodes", "clients", "listeners") and name, and what has to be written for them."""

    directory: Path
    public: dict[str, dict[str, str]] = field(default_factory=dict)
    fresh: dict[Path, KeyFile] = field(default_factory=dict)
    """Secret keys that were made now, by the files they go to."""
    redirected: dict[Path, KeyFile] = field(default_factory=dict)
    """Files of clients that are to name another coordinator, and are otherwise as they were."""
    found: list[Path] = field(default_factory=list)
    """Files that were there before the topology had any keys, and belong to it from now on."""
    gone: list[str] = field(default_factory=list)
    """Names with a key that are no nodes any more."""
    coordinator: str = ""
    """The public key of the draft node."""
    misled: list[str] = field(default_factory=list)
    """Clients whose files are elsewhere, and name a coordinator's key that is no longer one."""

    @classmethod
    def of(
        cls,
        topology: Topology,
        directory: Path,
        *,
        clients: Sequence[str] = (),
        listeners: Sequence[str] = (),
        replace: bool = False,
    ) -> Keyring:
        """Keys for every node of `topology`, and for these clients and listeners besides those that it has.

        Nothing is written. A key that the topology names stays as it is, unless `replace`. A secret key that lies in
        `directory` is taken over when the topology has no section `keys` at all. Raises `SecurityError` when a file
        there is of another key, or of one that the section does not list (it may have been taken back).
        """
        return _Maker(topology, cls(directory), replace).ring_for(clients, listeners)

    def section(self, directory: str) -> dict[str, Any]:
        """The values of the topology's section `keys`."""
        return {"directory": directory, **{kind: dict(keys) for kind, keys in self.public.items() if keys}}

    def placed(self) -> AbstractContextManager[None]:
        """The secret keys in their files; when the block fails, those that were there before are there again."""
        return placed(self.fresh | self.redirected)


def make_keys(topology: Topology, directory: Path, **more: Sequence[str]) -> Keyring:
    """A keyring whose secret keys are written; `more` are `clients` and `listeners`, as for `Keyring.of`."""
    ring = Keyring.of(topology, directory, **more)  # type: ignore[arg-type]
    with ring.placed():
        return ring


class _Maker:
    """Fills the keyring of one topology."""

    def __init__(self, topology: Topology, ring: Keyring, replace: bool) -> None:
        self.ring = ring
        self.replace = replace
        self.draft = topology.draft_node.name
        self.nodes = [*(entry.name for entry in topology.nodes), *(spare.name for spare in topology.spares)]
        self.begun = topology.keys is not None or "keys" in topology.model_fields_set
        """Whether there is a section already: then it is what says who is let in, and an old file does not."""
        self.listed = topology.keys or Keys()

    def ring_for(self, clients: Sequence[str], listeners: Sequence[str]) -> Keyring:
        names = {
            # The coordinator first: the files of clients name its key.
            "nodes": sorted(self.nodes, key=lambda name: name != self.draft),
            "clients": [*self.listed.clients, *clients],
            "listeners": [*self.listed.listeners, *listeners],
        }
        if not self.begun and not clients:
            names["clients"] = [CLIENT]
        _refuse_twins(names)
        for kind, owners in names.items():
            self.ring.public[kind] = {}
            for name in dict.fromkeys(owners):
                self.ring.public[kind][name] = self._provide(kind, name)
            self.ring.coordinator = self.ring.public["nodes"][self.draft]
        self.ring.public["nodes"] = {name: self.ring.public["nodes"][name] for name in self.nodes}
        self.ring.gone = [name for name in self.listed.nodes if name not in self.nodes]
        return self.ring

    def _provide(self, kind: str, name: str) -> str:
        """The public key of `name`, made now if there is none yet."""
        path = secret_path(self.ring.directory, name)
        coordinator = self.ring.coordinator.encode() if kind == "clients" else None
        public: str | None = None if self.replace else getattr(self.listed, kind).get(name)
        if os.path.lexists(path) and not self.replace:
            return self._keep(kind, path, public, coordinator)
        if public is None:
            pair = KeyPair.generate()
            self.ring.fresh[path] = KeyFile(name, pair, coordinator)
            return pair.public.decode()
        if coordinator and self._coordinator_is_new():
            self.ring.misled.append(name)
        return public

    def _keep(self, kind: str, path: Path, public: str | None, coordinator: bytes | None) -> str:
        """The public key of the file that is there, if it may be that."""
        file = read_key_file(path)
        own = file.pair.public.decode()
        if public is None and self.begun:
            raise SecurityError(
                f"{path} is there, but its key is not in the topology: it may have been taken back",
                hint=f"move or remove that file, and a new key is made; to let the old one in again, write under\n"
                f'  keys.{kind}: {path.stem}: "{own}"',
            )
        if public not in (None, own):
            raise _foreign(path)
        if file.coordinator != coordinator:
            if public is None or not coordinator or not file.coordinator or not self._was_coordinator(file.coordinator):
                raise _foreign(path)
            self.ring.redirected[path] = KeyFile(file.name, file.pair, coordinator)
        if public is None:
            self.ring.found.append(path)
        return own

    def _coordinator_is_new(self) -> bool:
        return secret_path(self.ring.directory, self.draft) in self.ring.fresh

    def _was_coordinator(self, key: bytes) -> bool:
        return self._coordinator_is_new() or key.decode() in self.listed.nodes.values()


def _foreign(path: Path) -> SecurityError:
    return SecurityError(
        f"{path} is a key of another topology, or of an older state of this one",
        hint="--force makes all keys anew; then every device needs its new file, and the new topology",
    )


def _refuse_twins(names: dict[str, list[str]]) -> None:
    """One name, one file, one owner."""
    owners: dict[str, str] = {}
    for kind, found in names.items():
        for name in found:
            if owners.setdefault(name, kind) != kind:
                raise SecurityError(f"{name!r} would be the name of two keys, among {owners[name]} and {kind}")
