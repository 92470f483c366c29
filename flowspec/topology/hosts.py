"""Questions about this machine's network: is a host this machine, which ports are free.

Answers with the operating system's own sockets, bound for a moment; nothing is sent to anybody.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from flowspec.errors import TopologyError

FIRST_FREE_PORT = 15_000
END_FREE_PORT = 32_000
"""Below the range from which Linux takes the ports of outgoing connections, which could come in between."""


def canonical_host(host: str) -> str:
    """The host as one of its spellings, so that equal hosts compare equal; no name is looked up."""
    lowered = host.lower().rstrip(".")
    return "127.0.0.1" if lowered in ("localhost", "::1") else lowered


def is_this_machine(host: str) -> bool:
    """Whether an address of `host` can be bound here; False also when the name is unknown."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return any(_can_bind(family, socket.SOCK_DGRAM, place) for family, _, _, _, place in found)


def free_ports(counts: Sequence[int], host: str = "127.0.0.1") -> list[int]:
    """The first port of a run of `counts[i]` free consecutive ports, for each i; the runs do not overlap.

    Starts at a random place, so that programs that ask at the same time rarely get the same answer.
    """
    size = END_FREE_PORT - FIRST_FREE_PORT
    start = random.SystemRandom().randrange(size)
    first_ports: list[int] = []
    run = 0
    for step in range(size):
        port = FIRST_FREE_PORT + (start + step) % size
        if port == FIRST_FREE_PORT:
            run = 0
        run = run + 1 if _can_bind(socket.AF_INET, socket.SOCK_STREAM, (host, port)) else 0
        if run == counts[len(first_ports)]:
            first_ports.append(port - run + 1)
            run = 0
            if len(first_ports) == len(counts):
                return first_ports
    raise TopologyError(f"no {sum(counts)} free ports on {host}")


def _can_bind(family: int, kind: int, place: object) -> bool:
    try:
        with socket.socket(family, kind) as probe:
            probe.bind(place)  # type: ignore[arg-type]
    except OSError:
        return False
    return True
