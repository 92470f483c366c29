"""`flowspec keys`: key pairs for a topology, the public ones written into its file; or one pair for one client."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowspec.topology import Topology
    from flowspec.topology.document import Document
    from flowspec.transport.keyring import Keyring

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def keys(
    place: Annotated[
        Path,
        typer.Argument(metavar="TOPOLOGY|DIR", help="The topology file to make keys for, or a directory for one key."),
    ],
    client: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A client that gets a key; may be given often.")
    ] = None,
    listener: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One who may hear the broadcasts; may be given often.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the secret keys go.  [default: as the file says, ./keys]")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="KEY", help="With DIR: the public key of the pipeline's draft node.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make all keys anew, also those that are there.")] = False,
) -> None:
    """Make keys: then every connection is encrypted, and opens to these keys alone.

    Run again, it makes what is missing, for a new node or client, takes out nodes that are gone, and leaves the rest.
    """
    from flowspec.errors import ConfigurationError

    _check_names([*(client or ()), *(listener or ())])
    if place.is_dir() or (not place.exists() and place.suffix not in (".yaml", ".yml")):
        if listener or directory is not None:
            raise ConfigurationError(
                "--listener and --directory are for a topology file", hint=f"{place} is taken for a directory"
            )
        _make_one(place, client or [], coordinator, force)
        return
    if coordinator is not None:
        raise ConfigurationError("--coordinator is for a directory", hint=f"{place} names its draft node itself")
    from flowspec.topology import Topology
    from flowspec.topology.document import read_document
    from flowspec.transport.keyring import Keyring

    document = read_document(place)
    topology = Topology.from_document(document, directory=place.resolve().parent, keys_complete=False)
    written, secrets = _directories(document, topology, directory, place)
    ring = Keyring.of(topology, secrets, clients=client or (), listeners=listener or (), replace=force)
    topology.replace(keys=ring.section(str(secrets)))
    _write(place, ring, written)
    _tell(place, ring)


def _check_names(names: list[str]) -> None:
    from flowspec.errors import ConfigurationError

    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no name", hint="a name has letters, digits, `.`, `_` and `-`")


def _make_one(directory: Path, names: list[str], coordinator: str | None, force: bool) -> None:
    """One client's pair, for whoever may not see the topology file; the public key goes there by hand."""
    from flowspec.errors import ConfigurationError
    from flowspec.topology.keys import key_bytes
    from flowspec.transport.keyring import CLIENT
    from flowspec.transport.keys import KeyFile, KeyPair, secret_path, write_key_file

    if len(names) > 1:
        raise ConfigurationError("a directory gets the key of one client")
    wanted = "give --coordinator KEY: the key of the draft node, under keys.nodes in the topology"
    if coordinator is None:
        raise ConfigurationError("a client's key file also names the coordinator it is for", hint=wanted)
    try:
        key_bytes(coordinator)
    except ValueError:
        raise ConfigurationError("what is given as --coordinator is no key", hint=wanted) from None
    name = names[0] if names else CLIENT
    path, pair = secret_path(directory, name), KeyPair.generate()
    write_key_file(path, KeyFile(name, pair, coordinator.encode()), replace=force)
    typer.echo(f"{path}: keep it secret, and give it to flowspec as --key")
    typer.echo("For the topology's section `keys`, under `clients`:")
    typer.echo(f'  {name}: "{pair.public.decode()}"')


def _directories(document: Document, topology: Topology, asked: Path | None, place: Path) -> tuple[str, Path]:
    """The directory of the secret keys as the topology file is to write it, and where that is."""
    from flowspec.topology.keys import DIRECTORY

    if asked is not None:
        return str(asked.resolve()), asked.resolve()
    if topology.keys is None:
        return DIRECTORY, place.resolve().parent / DIRECTORY
    return document.value["keys"].get("directory", DIRECTORY), Path(topology.keys.directory)


def _write(place: Path, ring: Keyring, directory: str) -> None:
    """Secret keys and topology, all of them or none; what is not in the section `keys` stays as it stands."""
    from flowspec.errors import ConfigurationError
    from flowspec.output import OutputFile
    from flowspec.topology.key_section import with_keys

    file = place.resolve()
    # As bytes, so that the ends of lines stay what they are.
    before = file.read_bytes().decode("utf-8")
    text, mode = with_keys(before, ring.section(directory), file=str(place)), stat.S_IMODE(file.stat().st_mode)
    with ring.placed():
        if text == before:
            return
        try:
            with OutputFile(file, "the topology with its new keys").replaced() as stream:
                stream.write(text)
        except ConfigurationError as error:
            error.hint = "nothing was changed: the topology and all keys are as they were"
            raise
        file.chmod(mode)


def _tell(place: Path, ring: Keyring) -> None:
    """What was done, and what is left to do by hand."""
    _tell_what_was_found(place, ring)
    if not ring.public["clients"]:
        typer.echo("No client has a key; --client NAME makes one")
    if not (ring.fresh or ring.redirected or ring.found or ring.gone):
        typer.echo(f"{place} has keys for everybody already; --force makes them anew")
        return
    if ring.fresh:
        typer.echo(f"New secret keys in {ring.directory}:")
        _list(ring.fresh)
    typer.echo(f"{place} has the public ones. Next:")
    typer.echo("  1. give every device that topology file, and its own NAME.secret alone")
    typer.echo("     (mode 0600, in the directory that the section `keys` names)")
    typer.echo("  2. start the nodes again; a device with a wrong key is refused, and named")
    typer.echo("  3. clients: flowspec generate --key FILE (or FLOWSPEC_KEY=FILE)")
    typer.echo("Then remove from here the secret keys of other devices.")


def _tell_what_was_found(place: Path, ring: Keyring) -> None:
    from flowspec.transport.keys import FOREIGN

    mode = stat.S_IMODE(ring.directory.stat().st_mode) if ring.directory.is_dir() else 0
    if mode & FOREIGN:
        typer.echo(f"Others may look into {ring.directory}")
        typer.echo(f"  (mode {mode:04o}; the keys in it are yours alone). Better: chmod 700")
    for name in ring.gone:
        typer.echo(f"{name} is no node of {place} any more: its key is taken out there")
    if ring.found:
        typer.echo(f"Taken over, because {place} had no keys, and these were there:")
        _list(ring.found)
    if ring.redirected:
        typer.echo("The draft node has another key, and these key files of clients now say so:")
        _list(ring.redirected)
    if ring.misled:
        typer.echo("The draft node has another key. The key files of these clients are not here,")
        typer.echo("and need the line `coordinator` changed, or a new key:")
        typer.echo("".join(f"  {name}\n" for name in ring.misled) + f"  coordinator {ring.coordinator}")


def _list(paths: Iterable[Path]) -> None:
    for path in paths:
        typer.echo(f"  {path.name}")
