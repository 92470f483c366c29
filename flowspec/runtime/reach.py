"""How long it takes to reach another node's port, and what this machine offers: questions to the system.

A connection is made and closed again; nothing is said on it. Knows no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from importlib import metadata
from pathlib import Path

import zmq

MEMORY = Path("/proc/meminfo")
TRIES = 5
SECONDS = 3.0
"""For one connection."""


async def round_trips(host: str, port: int, tries: int = TRIES) -> tuple[float, ...]:
    """Seconds that each of `tries` TCP connections took to be made, one after the other; fewer when one fails."""
    found = []
    with contextlib.suppress(OSError, TimeoutError):
        for _ in range(tries):
            began = time.perf_counter()
            async with asyncio.timeout(SECONDS):
                _, writer = await asyncio.open_connection(host, port)
            found.append(time.perf_counter() - began)
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return tuple(found)


def memory() -> tuple[int, int]:
    """Bytes that this machine has, and that are free for a new program; zeros where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    return total, free


def versions() -> dict[str, str]:
    """What is installed here, by the names of `NodeFacts`."""
    found = {"python": platform.python_version(), "zeromq": zmq.zmq_version()}
    for name in ("flowspec", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def has_curve() -> bool:
    """Whether the ZeroMQ that is installed here can encrypt."""
    return bool(zmq.has("curve"))
