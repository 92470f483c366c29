"""The responder for metrics: two paths, one method, and bounds for everything else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from flowspec.errors import PortInUse
from flowspec.runtime import metrics
from flowspec.runtime.metrics import Metric, MetricsServer, render
from flowspec.topology.hosts import free_ports
from tests.transport.opened import soon

FIGURES = [
    Metric("flowspec_ready", "Is it.", 1),
    Metric("flowspec_bytes_total", "Bytes.", 12345678901, "counter", (("channel", "return"),)),
    Metric("flowspec_bytes_total", "Bytes.", 0.5, "counter", (("channel", 'a"b\\c\nd'),)),
]
TEXT = """# HELP flowspec_ready Is it.
# TYPE flowspec_ready gauge
flowspec_ready 1
# HELP flowspec_bytes_total Bytes.
# TYPE flowspec_bytes_total counter
flowspec_bytes_total{channel="return"} 12345678901
flowspec_bytes_total{channel="a\\"b\\\\c\\nd"} 0.5
"""


def test_the_text_is_as_prometheus_has_it() -> None:
    assert render(FIGURES) == TEXT


@contextlib.asynccontextmanager
async def serving(problem: str = "") -> AsyncIterator[int]:
    server = MetricsServer("node", lambda: FIGURES, lambda: problem)
    await server.open("127.0.0.1", free_ports([1])[0])
    try:
        yield server.port
    finally:
        await soon(server.close())


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    try:
        return await soon(reader.read())
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_metrics_and_health_are_answered() -> None:
    async with serving() as port:
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(TEXT)}".encode() in head
        assert body.decode() == TEXT
        assert (await ask(port, b"GET /health HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nok\n")
    async with serving("it waits for stage-2") as port:
        answer = await ask(port, b"GET /health HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"it waits for stage-2\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\xff\x00\x00\x00\r\n\r\n", b"400"),
    ],
)
async def test_everything_else_is_refused(request_: bytes, status: bytes) -> None:
    async with serving() as port:
        assert (await ask(port, request_)).split(b" ")[1] == status


async def test_a_request_without_an_end_is_cut_off() -> None:
    async with serving() as port:
        assert await ask(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000) == b""


async def test_who_says_nothing_is_cut_off_and_too_many_are_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.2)
    async with serving() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(metrics.MAX_CONNECTIONS + 4)]
        for reader, writer in silent:
            with contextlib.suppress(ConnectionError):
                assert await soon(reader.read()) == b""
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        assert await ask(port, b"GET /health HTTP/1.1\r\n\r\n")


async def test_a_taken_port_is_told() -> None:
    async with serving() as port:
        with pytest.raises(PortInUse, match="another `metrics_port`"):
            await MetricsServer("node", list, str).open("127.0.0.1", port)
