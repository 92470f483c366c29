"""`flowspec up`: all nodes of a topology file as processes on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.cli.logs import LogFormat, LogLevel
from flowspec.program import debugging
from flowspec.runtime.logs import announce_logs, configure_logs

if TYPE_CHECKING:
    from flowspec.cluster import LocalCluster
    from flowspec.topology import Topology


def up(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="A topology file; all its nodes run here.")],
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without keys.")] = False,
    log_format: LogFormat = "auto",
    log_level: LogLevel = "info",
) -> None:
    """Run all nodes of a topology file as processes on this machine.

    Ctrl-C once lets running requests end; twice stops at once.
    """
    from flowspec.cli.models import check_models
    from flowspec.cli.topology_file import load_topology
    from flowspec.cluster import refuse_foreign
    from flowspec.runtime.loop import run

    loaded = load_topology(topology)
    if insecure:
        loaded = loaded.replace(insecure=True)
    configure_logs(log_format, log_level)
    announce_logs(log_format, log_level)
    refuse_foreign(loaded)
    check_models(loaded)
    run(_up(loaded))


async def _up(topology: Topology) -> None:
    from flowspec.cli.head_probe import probe_head, reads_features
    from flowspec.cli.render import Readiness
    from flowspec.cluster import LocalCluster

    names = list(topology.node_names)
    with Readiness(names) as readiness:
        cluster = LocalCluster(topology=topology, progress=readiness.update, debug=debugging())
        brakes = _Brakes(cluster)
        await cluster.__aenter__()
    try:
        brakes.started = True
        typer.echo(f"ready: {', '.join(names)}")
        typer.echo(f"clients connect to {cluster.address}, for example:")
        typer.echo(f'  flowspec generate --connect {cluster.address} --prompt "def fibonacci(n):"')
        if reads_features(topology):
            await probe_head(topology)
        await cluster.wait()
    finally:
        await cluster.close()


class _Brakes:
    """Ctrl-C: before the start is over, break it off; then drain; then stop."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.started = False
        self._cluster = cluster
        self._task = asyncio.current_task()
        self._pulled = False
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._pull)

    def _pull(self) -> None:
        if not self.started:
            if self._task is not None:
                self._task.cancel()
        elif not self._pulled:
            typer.echo("draining: running requests end first; Ctrl-C again stops at once", err=True)
            self._cluster.drain()
        else:
            self._cluster.stop()
        self._pulled = True
