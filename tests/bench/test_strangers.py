"""Strangers knock as told and leave nothing behind; what is judged is their cost with their own computing taken out."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import threading
from collections.abc import AsyncIterator

import pytest

from flowspec.bench.intruders import Intruders
from flowspec.bench.knocking import Begin, Burn, Knocks, Pause, knock
from flowspec.bench.stranger_costs import NodeCosts

HALF_OPEN = 5
DEADLINE = 30.0


class Door:
    """A port that listens and says nothing."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if await reader.read(1):
                self.heard.set()
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    server = await asyncio.start_server(door.enter, "127.0.0.1", 0)
    async with server:
        door.port = server.sockets[0].getsockname()[1]
        yield door


async def test_they_knock_as_told_and_compute_as_told(door: Door) -> None:
    line, theirs = multiprocessing.Pipe()
    arguments = (theirs, {door.port: ""}, "no file", door.port, HALF_OPEN)
    thread = threading.Thread(target=knock, args=arguments)
    thread.start()

    async def tell(word: Begin | Burn | Pause) -> object:
        line.send(word)
        assert await asyncio.to_thread(line.poll, DEADLINE)
        return line.recv()

    try:
        assert await tell(Begin(("silent", "garbage"))) is True
        await asyncio.wait_for(door.heard.wait(), DEADLINE)
        knocks = await tell(Pause())
        assert isinstance(knocks, Knocks)
        assert (knocks.half_open, knocks.by_kind["silent"] >= HALF_OPEN) == (HALF_OPEN, True)
        assert set(knocks.by_kind) == {"silent", "garbage"}
        assert await tell(Burn(0.05)) is True
        burnt = await tell(Pause())
        assert isinstance(burnt, Knocks)
        assert (burnt.by_kind, burnt.half_open) == ({}, 0)
    finally:
        line.close()
        await asyncio.to_thread(thread.join, DEADLINE)
        theirs.close()
    assert not thread.is_alive()


def test_what_the_strangers_compute_themselves_is_not_judged() -> None:
    found = Intruders(
        rounds=2,
        new_tokens=8,
        alone=10.0,
        elsewhere=9.0,
        disturbed=8.5,
        ratio=0.94,
        ratio_shared=0.85,
        same_tokens=2,
        half_open=1,
        knocks={},
        let_in=0,
        refused=1,
        stranger_cores={},
        node_cores={},
        node_costs=NodeCosts(0.05, 100.0, ()),
    )
    assert found.met
    assert not dataclasses.replace(found, ratio=0.89).met
    assert not dataclasses.replace(found, let_in=1).met
    assert not dataclasses.replace(found, same_tokens=1).met
