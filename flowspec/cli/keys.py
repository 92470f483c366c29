"""`flowspec keys`: key pairs for a topology, the public ones written into its file; or one pair for one client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowspec.topology import Topology
    from flowspec.transport.keyring import Keyring

COMMENT = "# Made by `flowspec keys`: public keys, nothing here is secret. Each device keeps its own NAME.secret."
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

    Run again, it makes what is missing, for a new node or client, and leaves the rest as it is.
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
    from flowspec.transport.keyring import make_keys

    topology = Topology.load(place)
    written = _written_directory(topology, directory, place)
    ring = make_keys(
        topology,
        (place.resolve().parent / written).expanduser(),
        clients=client or (),
        listeners=listener or (),
        replace=force,
    )
    _write_topology(place, ring, written)
    _tell(place, ring)


def _check_names(names: list[str]) -> None:
    from flowspec.errors import ConfigurationError

    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no name", hint="a name has letters, digits, `.`, `_` and `-`")


def _make_one(directory: Path, names: list[str], coordinator: str | None, force: bool) -> None:
    """One client's pair, for whoever may not see the topology file; the public key goes there by hand."""
    from flowspec.errors import ConfigurationError
    from flowspec.transport.keyring import CLIENT
    from flowspec.transport.keys import KeyFile, KeyPair, secret_path, write_key_file

    if len(names) > 1:
        raise ConfigurationError("a directory gets the key of one client")
    if coordinator is None or len(coordinator) != 40:
        raise ConfigurationError(
            "a client's key file also names the coordinator it is for",
            hint="give --coordinator KEY: the key of the draft node, under keys.nodes in the topology",
        )
    name = names[0] if names else CLIENT
    path, pair = secret_path(directory, name), KeyPair.generate()
    write_key_file(path, KeyFile(name, pair, coordinator.encode()), replace=force)
    typer.echo(f"{path}: keep it secret, and give it to flowspec as --key")
    typer.echo("For the topology's section `keys`, under `clients`:")
    typer.echo(f'  {name}: "{pair.public.decode()}"')


def _written_directory(topology: Topology, directory: Path | None, place: Path) -> str:
    """The directory of the secret keys as the topology file is to write it."""
    from flowspec.topology.keys import DIRECTORY

    if directory is not None:
        return str(directory.resolve())
    if topology.keys is None:
        return DIRECTORY
    found, parent = Path(topology.keys.directory), place.resolve().parent
    return f"./{found.relative_to(parent)}" if found.is_relative_to(parent) else str(found)


def _write_topology(place: Path, ring: Keyring, directory: str) -> None:
    """Put the section into the file; everything else in it stays as it stands, comments included."""
    from flowspec.topology import Topology
    from flowspec.topology.document import parse_document

    file = place.resolve()
    text = with_keys(file.read_text(encoding="utf-8-sig"), ring, directory)
    Topology.from_document(parse_document(text, file=str(place)), directory=file.parent)
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(file.stat().st_mode & 0o777)
    fresh.replace(file)


def with_keys(text: str, ring: Keyring, directory: str) -> str:
    """The topology `text` with its section `keys` replaced, or added at its end."""
    import yaml

    from flowspec.errors import ConfigurationError

    lines = ["keys:", f'  directory: "{directory}"']
    for kind, found in ring.public.items():
        lines += [f"  {kind}:"] * bool(found) + [f'    {name}: "{key}"' for name, key in found.items()]
    block = "\n".join(lines)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ConfigurationError("a topology in braces cannot be added to; write it as lines, or add:\n" + block)
    for name, value in root.value:
        if name.value == "keys":
            return text[: name.start_mark.index] + block + text[_end(value) :]
    return f"{text.rstrip()}\n\n{COMMENT}\n{block}\n"


def _end(node: object) -> int:
    """Where the last scalar of a node ends: what stands behind it, comments too, belongs to the next."""
    import yaml

    assert isinstance(node, yaml.ScalarNode | yaml.CollectionNode)
    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return int(node.end_mark.index)
    inner = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
    return max(map(_end, inner), default=int(node.end_mark.index))


def _tell(place: Path, ring: Keyring) -> None:
    if not ring.written:
        typer.echo(f"{place} has keys for everybody already; --force makes them anew")
        return
    typer.echo(f"{len(ring.written)} secret keys in {ring.directory}:")
    for path in ring.written:
        typer.echo(f"  {path.name}")
    typer.echo(f"{place} has the public ones. Next:")
    typer.echo("  1. give every device that topology file, and its own NAME.secret alone")
    typer.echo("     (mode 0600, in the directory that the section `keys` names)")
    typer.echo("  2. start the nodes again; a device with a wrong key is refused, and named")
    typer.echo("  3. clients: flowspec generate --key FILE (or FLOWSPEC_KEY=FILE)")
    typer.echo("Then remove from here the secret keys of other devices.")
