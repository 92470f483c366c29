"""What every process of a soak holds, sample after sample: memory, open files, threads, and what the nodes say.

Memory is what a process has in anonymous pages: its heap, its stacks, its tensors. Its PSS is noted too, but says less
of whether it grows: pages that it has in common with others (libraries, and what nodes were forked with) are divided by
those who share them, so that it changes when any other program starts or ends, and rises for an hour and more while
nodes come to write to what they were forked with. Linux only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowspec.bench.memory import resident
from flowspec.topology import Topology
from flowspec.topology.hosts import free_ports

ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 30.0

HELD = ("flowspec_sessions", "flowspec_waiting", "flowspec_in_flight", "flowspec_cache_rows", "flowspec_queued")
"""Metrics that have to be 0 where nothing is asked of a pipeline."""

TASKS = "flowspec_tasks"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process holds at one moment. `metrics` are those of `HELD` and `TASKS` that a node has."""

    memory: int
    """Bytes in anonymous pages."""
    pss: int
    """Bytes."""
    files: int
    threads: int
    metrics: Mapping[str, float]


def with_metrics(topology: Topology) -> Topology:
    """`topology`, all of whose nodes serve their metrics on free ports."""
    names = topology.node_names
    for name, port in zip(names, free_ports([1] * len(names)), strict=True):
        topology = topology.with_metrics(name, port)
    return topology


def metrics_ports(topology: Topology) -> dict[str, int]:
    nodes = (topology.draft_node, *topology.stages)
    return {node.name: node.metrics_port for node in nodes if node.metrics_port is not None}


async def sample(process: int, port: int | None = None) -> Sample:
    """Of `process`, whose metrics are served at `port`. Raises `OSError` or `TimeoutError` when it is gone."""
    metrics = {} if port is None else await read_metrics(port)
    folder = Path("/proc", str(process))
    return Sample(
        memory=resident("Anonymous", process),
        pss=resident("Pss", process),
        files=len(list((folder / "fd").iterdir())),
        threads=len(list((folder / "task").iterdir())),
        metrics={name: value for name, value in metrics.items() if name in HELD or name == TASKS},
    )


async def read_metrics(port: int) -> dict[str, float]:
    """The figures without labels that a node on this machine serves at `port`."""
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            _, _, body = (await reader.read(ANSWER_BYTES)).partition(b"\r\n\r\n")
            while part := await reader.read(ANSWER_BYTES):
                body += part
        finally:
            writer.close()
            await writer.wait_closed()
    lines = [line.split(" ") for line in body.decode().splitlines() if not line.startswith("#")]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and "{" not in line[0]}
