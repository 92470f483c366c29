"""A short campaign: a dozen faults of every kind, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from flowspec.bench.cut_links import CutLinks, addressed_through_proxies
from flowspec.bench.fault_kinds import MemoryFaults, ProcessFaults
from flowspec.bench.faults import Outcome, among_processes, in_memory, kinds
from flowspec.bench.random_model import write_random_model
from flowspec.topology import Topology

DEADLINE = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


def check(outcome: Outcome, count: int) -> None:
    told = outcome.as_values()
    assert (told["faults"], told["wrong"], told["hung"], told["leaked"]) == (count, 0, 0, 0), outcome.leaks
    assert told["streams"] == told["exact"] + told["documented_errors"]
    assert told["exact"] > 0


async def test_nothing_is_lost_when_processes_and_links_fail(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        check(await among_processes(model, 6, random.Random(1)), 6)


async def test_nothing_is_lost_when_messages_vanish_and_nodes_are_replaced(model: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        check(await in_memory(model, 8, random.Random(1)), 8)


@pytest.mark.parametrize("shares", [ProcessFaults.shares, MemoryFaults.shares])
def test_kinds_are_drawn_in_their_shares(shares: dict[str, int]) -> None:
    count = sum(shares.values())
    drawn = kinds(shares, count, random.Random(3))
    assert {kind: drawn.count(kind) for kind in shares} == shares
    assert drawn != sorted(drawn)
    assert len(kinds(shares, 7, random.Random(3))) == 7
    for enough in range(len(shares), count):
        assert set(kinds(shares, enough, random.Random(enough))) == set(shares)


async def test_a_link_that_is_cut_carries_nothing_until_it_is_healed() -> None:
    topology = addressed_through_proxies(Topology.local(stages=1))
    port = topology.stages[0].port

    ended = asyncio.Semaphore(0)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while word := await reader.read(16):
                writer.write(word)
        writer.transport.abort()
        ended.release()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"word")
        return await reader.read(16)

    async with asyncio.timeout(10), CutLinks(topology) as links:
        server = await asyncio.start_server(echo, "127.0.0.1", port)
        open_link = await asyncio.open_connection("127.0.0.2", port)
        assert await ask(*open_link) == b"word"
        links.cut(port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await open_link[0].readexactly(1)
        links.heal(port)
        again = await asyncio.open_connection("127.0.0.2", port)
        assert await ask(*again) == b"word"
        for _, writer in (open_link, again):
            writer.transport.abort()
            await ended.acquire()
        server.close()
