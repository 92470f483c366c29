"""TCP links that can be cut: a proxy in front of every port of a pipeline on this machine.

Nodes listen on 127.0.0.1 and are addressed at 127.0.0.2, where the proxy listens on the same port. Linux, where all of
127.0.0.0/8 is this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Self

from flowspec.topology import Topology

LISTENED, ADDRESSED = "127.0.0.1", "127.0.0.2"
CHUNK_BYTES = 256 * 1024


def addressed_through_proxies(topology: Topology) -> Topology:
    """`topology` with every node addressed where the proxies listen."""
    nodes = [{**entry, "host": ADDRESSED, "bind": LISTENED} for entry in topology.as_values()["nodes"]]
    return topology.replace(nodes=nodes)


class CutLinks:
    """Proxies for all ports of `topology`, for as long as a block of code runs."""

    def __init__(self, topology: Topology) -> None:
        nodes = (topology.draft_node, *topology.stages)
        self.ports = tuple(node.port + offset for node in nodes for offset in range(node.ports))
        self._servers: list[asyncio.Server] = []
        self._connections: dict[int, set[asyncio.Task[None]]] = {port: set() for port in self.ports}
        self._cut: set[int] = set()

    async def __aenter__(self) -> Self:
        for port in self.ports:
            self._servers.append(await asyncio.start_server(self._accepting(port), ADDRESSED, port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for connections in self._connections.values() for task in connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self, port: int) -> None:
        """Break all connections to `port`, with what is in them, and let none be made."""
        self._cut.add(port)
        for task in self._connections[port]:
            task.cancel()

    def heal(self, port: int) -> None:
        self._cut.discard(port)

    def _accepting(self, port: int) -> Any:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections[port].add(task)
            try:
                await self._carry(port, reader, writer)
            except asyncio.CancelledError:
                writer.transport.abort()
            finally:
                self._connections[port].discard(task)

        return accept

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if port in self._cut:
            writer.transport.abort()
            return
        try:
            inner_reader, inner_writer = await asyncio.open_connection(LISTENED, port)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()
            for end in (writer, inner_writer):
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side is closed, which ends the other direction too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
