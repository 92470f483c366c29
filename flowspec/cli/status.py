"""`flowspec status`: what a running pipeline is doing, once or again and again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowspec.cli.requests import check_counts, read_address
from flowspec.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from flowspec.wire.messages import NodeStatus, Status

TOPOLOGY_SUFFIXES = (".yaml", ".yml")

INTERVAL = 1.0
"""Seconds between two looks with --watch."""


def status(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS|TOPOLOGY", help="A running pipeline's address, or its topology file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="FLOWSPEC_KEY", help="Your key file, where the pipeline asks for keys."),
    ] = None,
    connect_timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 10.0,
) -> None:
    """Show nodes, layers, sessions, queues and rates of a running pipeline."""
    from flowspec.runtime.loop import run

    check_counts(connect_timeout=connect_timeout)
    place, key = target(address, key)
    run(_show(place, key, as_json, watch, connect_timeout))


def target(place: str, key: Path | None) -> tuple[str, Path | None]:
    """Address and client key of a running pipeline, of which `place` is the address or the topology file."""
    if not Path(place).is_file():
        if "://" not in place and (os.sep in place or Path(place).suffix in TOPOLOGY_SUFFIXES):
            raise ConfigurationError(f"there is no file {place}", hint="give a topology file, or tcp://HOST:PORT")
        return read_address(place), key
    from flowspec.topology import Topology
    from flowspec.transport.access import find_client_key

    topology = Topology.load(place)
    return topology.client_address, key or find_client_key(topology)


async def _show(address: str, key: Path | None, as_json: bool, watch: bool, seconds: float) -> None:
    from rich.console import Console

    from flowspec.client import Client

    console = Console(highlight=False)
    async with Client(address, key=key, connect_timeout=seconds) as client:
        before: Status | None = None
        while True:
            found = await client.status()
            if as_json:
                print(json.dumps(as_values(found)), flush=True)
            else:
                if watch and console.is_terminal:
                    console.clear()
                console.print(picture(found, before))
            if not watch:
                return
            before = found
            await asyncio.sleep(INTERVAL)


def as_values(found: Status) -> dict[str, Any]:
    """The status as plain values; the request's own name says nothing to anybody."""
    values = dataclasses.asdict(found)
    del values["request"], values["requests"]
    return values


def picture(found: Status, before: Status | None = None) -> Group:
    """For people, in 80 columns; rates are those since `before`, or since the start."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    from flowspec.cli.render import counted

    state = "draining" if found.draining else "ready" if found.ready else "not ready"
    since = found.uptime - (before.uptime if before else 0.0)
    rate = (found.tokens - (before.tokens if before else 0)) / since if since > 0 else 0.0
    head = [
        f"{state}, up {_duration(found.uptime)}: {found.model}, policy {found.policy}, drafter {found.drafter}",
        f"{counted(found.sessions, 'session')}, {found.waiting} waiting, "
        f"{counted(found.in_flight, 'segment')} in flight, "
        f"{rate:.1f} tokens/s{'' if before else ' on average'}",
        f"{found.tokens} tokens; requests: {found.finished} finished, {found.failed} refused or broken off; "
        f"messages refused: {found.refused}",
    ]
    nodes = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("stage", "state", "layers"):
        nodes.add_column(name, no_wrap=True)
    for name in ("weights", "sessions", "rows", "queue", "busy", "refused"):
        nodes.add_column(name, justify="right")
    earlier = {each.name: each for each in before.nodes} if before else {}
    for each in found.nodes:
        nodes.add_row(*map(_plain, _row(each, earlier.get(each.name), since)))
    sessions = Table(box=box.SIMPLE, pad_edge=False)
    sessions.add_column("session")
    sessions.add_column("policy")
    for name in ("prompt", "tokens", "seconds", "tokens/s"):
        sessions.add_column(name, justify="right")
    for live in found.live:
        speed = live.tokens / live.seconds if live.seconds > 0 else 0.0
        counts = (str(live.prompt), str(live.tokens), f"{live.seconds:.1f}", f"{speed:.1f}")
        sessions.add_row(*map(_plain, (live.session, live.policy, *counts)))
    return Group(*map(_plain, head), nodes, *([sessions] if found.live else []))


def _plain(text: str) -> Text:
    """Nothing in it is markup: nodes and clients have names, and models paths, that others chose."""
    from rich.text import Text

    from flowspec.printable import printable

    return Text(printable(text))


def _row(each: NodeStatus, before: NodeStatus | None, since: float) -> tuple[str, ...]:
    from flowspec.cli.render import size
    from flowspec.topology.sections import show_layers

    layers = show_layers((each.first_layer, each.end_layer)) if each.end_layer else "-"
    busy = each.busy_seconds - (before.busy_seconds if before else 0.0)
    share = f"{min(1.0, busy / since):.0%}" if since > 0 and before is not None else f"{each.busy_seconds:.0f} s"
    counts = (each.sessions, each.rows, each.queued)
    return (
        each.name,
        each.state,
        layers,
        size(each.weight_bytes),
        *map(str, counts),
        share,
        str(each.refused),
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
