"""Every test here runs on asyncio and on uvloop; what a test opens is closed when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
import uvloop

from flowspec.topology import Topology
from flowspec.transport.base import Transport
from flowspec.transport.memory import MemoryTransport
from flowspec.transport.zeromq import ZeroMQTransport
from tests.transport.opened import Opened


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["memory", "zeromq"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return MemoryTransport() if request.param == "memory" else ZeroMQTransport()


@pytest.fixture
def topology() -> Topology:
    return Topology.local(stages=3)


@pytest_asyncio.fixture
async def opened(topology: Topology) -> AsyncIterator[Opened]:
    """Opens roles by name and closes whatever a test has not."""
    everything = Opened(topology)
    yield everything
    await everything.close()
