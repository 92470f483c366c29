"""Every test here has a topology with keys, and closes what it opens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from flowspec.topology import Topology
from tests.security.rings import with_keys
from tests.transport.opened import Opened


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return with_keys(Topology.local(stages=3), tmp_path / "keys", listeners=("listener",))


@pytest_asyncio.fixture
async def opened(topology: Topology) -> AsyncIterator[Opened]:
    everything = Opened(topology)
    yield everything
    await everything.close()
