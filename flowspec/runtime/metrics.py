"""Figures of a node for whoever watches it: `GET /metrics` in the text format of Prometheus, `GET /health` for probes.

A responder of its own, so small that there is little to attack: two paths, one method, bounded in bytes, seconds and
connections. It listens on this machine alone unless the topology says otherwise, and is not there unless asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowspec.errors import PortInUse, TransportError

logger = logging.getLogger(__name__)

MAX_REQUEST = 8192
"""Bytes of a request's head."""

SECONDS = 5.0
"""For one connection, from its beginning to its end."""

MAX_CONNECTIONS = 16

TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure at one moment. `kind`: "gauge", or "counter" for what only grows; its name then ends in _total."""

    name: str
    help: str
    value: float
    kind: str = "gauge"
    labels: tuple[tuple[str, str], ...] = ()


def render(metrics: Iterable[Metric]) -> str:
    """The text format: metrics of one name together, under their help and type."""
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.name, []).append(metric)
    lines = []
    for name, group in groups.items():
        lines += [f"# HELP {name} {group[0].help}", f"# TYPE {name} {group[0].kind}"]
        lines += [f"{name}{_labels(metric.labels)} {metric.value:.17g}" for metric in group]
    return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    escaped = ((key, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for key, value in labels)
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


class MetricsServer:
    """Answers with what `collect` returns; `healthy` is empty, or says what is wrong. Both are called in the loop."""

    def __init__(self, node: str, collect: Callable[[], Iterable[Metric]], healthy: Callable[[], str]) -> None:
        self._node = node
        self._collect = collect
        self._healthy = healthy
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        """Raises `PortInUse` or `TransportError`."""
        try:
            self._server = await asyncio.start_server(
                self._accept, host if host != "*" else None, port, limit=MAX_REQUEST
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"port {port} on {host} is taken by another program",
                    node=self._node,
                    hint="give the node another `metrics_port`",
                ) from error
            raise TransportError(f"cannot serve metrics on {host}:{port}: {error.strerror}", node=self._node) from error

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(set(self._connections))
        await self._server.wait_closed()
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"{self._node}: metrics")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(head)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
                writer.write_eof()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await writer.wait_closed()

    def _answer(self, head: bytes) -> tuple[str, str, bytes]:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", "text/plain", b"not HTTP/1\n"
        method, path, _ = words
        if method != b"GET":
            return "405 Method Not Allowed", "text/plain", b"GET alone is answered\n"
        if path == b"/metrics":
            return "200 OK", TEXT, render(self._collect()).encode()
        if path == b"/health":
            problem = self._healthy()
            status = "503 Service Unavailable" if problem else "200 OK"
            return status, "text/plain", f"{problem or 'ok'}\n".encode()
        return "404 Not Found", "text/plain", b"there are /metrics and /health\n"
