"""What strangers cost the nodes themselves: the time of their threads, while no request runs, by kind of stranger.

Time of threads, not of the clock: whatever else computes on the same cores is not in it. What the kernel does for a
connection over loopback counts for the process that sends, which is mostly the stranger's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flowspec.bench.knocking import KINDS, Begin, Knocks
from flowspec.cluster import LocalCluster

IO, LOOP, COMPUTE = "io", "loop", "compute"


class Knocking(Protocol):
    """The process that knocks."""

    async def begin(self, word: Begin) -> None: ...

    async def pause(self) -> Knocks: ...


@dataclass(frozen=True, slots=True)
class KindCost:
    """Of one stranger, over all nodes, in milliseconds of computing."""

    kind: str
    knocks: int
    io_ms: float
    """In ZeroMQ's thread: accept, greeting, handshake, and closing it all."""
    loop_ms: float
    """In the thread of the event loop, where keys are looked up."""


@dataclass(frozen=True, slots=True)
class NodeCosts:
    cores: float
    """All nodes together, while strangers of every kind knock, beyond what they take at rest."""
    knocks_per_second: float
    """Then."""
    by_kind: tuple[KindCost, ...]


def thread_seconds(cluster: LocalCluster) -> dict[str, float]:
    """Computed by all nodes since their start, by what the thread is there for; zeros where there is no such /proc."""
    found = {IO: 0.0, LOOP: 0.0, COMPUTE: 0.0}
    for pid in cluster.processes.values():
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds = int((thread / "schedstat").read_text().split()[0])
                found[_purpose(thread, pid)] += nanoseconds / 1e9
    return found


def _purpose(thread: Path, pid: int) -> str:
    if (thread / "comm").read_text().startswith("ZMQ"):
        return IO
    return LOOP if thread.name == str(pid) else COMPUTE


async def measure_costs(cluster: LocalCluster, strangers: Knocking, seconds: float) -> NodeCosts:
    """Each kind alone and then all at once, `seconds` each."""
    await asyncio.sleep(1.0)
    rest = await _rest(cluster, seconds)
    kinds = [await _kind(cluster, strangers, kind, seconds, rest) for kind in KINDS]
    await strangers.begin(Begin())
    before, began = thread_seconds(cluster), time.perf_counter()
    await asyncio.sleep(seconds)
    after, lasted = thread_seconds(cluster), time.perf_counter() - began
    knocks = await strangers.pause()
    spent = sum(after.values()) - sum(before.values()) - lasted * sum(rest.values())
    # Those that were opened before are what it began with.
    came = sum(knocks.by_kind.values()) - knocks.half_open
    return NodeCosts(round(spent / lasted, 4), round(came / lasted, 1), tuple(kinds))


async def _rest(cluster: LocalCluster, seconds: float) -> dict[str, float]:
    """Cores that the nodes take when nothing happens, by thread."""
    before, began = thread_seconds(cluster), time.perf_counter()
    await asyncio.sleep(seconds)
    after, lasted = thread_seconds(cluster), time.perf_counter() - began
    return {name: (after[name] - before[name]) / lasted for name in after}


async def _kind(
    cluster: LocalCluster, strangers: Knocking, kind: str, seconds: float, rest: dict[str, float]
) -> KindCost:
    """From before the first of them to after the last is gone."""
    before, began = thread_seconds(cluster), time.perf_counter()
    await strangers.begin(Begin((kind,)))
    await asyncio.sleep(seconds)
    knocks = await strangers.pause()
    after, lasted = thread_seconds(cluster), time.perf_counter() - began
    count = max(1, sum(knocks.by_kind.values()))
    each = {name: 1000 * (after[name] - before[name] - lasted * rest.get(name, 0.0)) / count for name in (IO, LOOP)}
    return KindCost(kind, count, round(max(0.0, each[IO]), 3), round(max(0.0, each[LOOP]), 3))
