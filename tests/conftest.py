"""Rules for every test: no network, one torch thread, nothing left behind (`leaks`), no loop blocked (`blocking`), no
hang without a word (`hanging`)."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial

import hypothesis
import pytest

from tests import blocking, hanging, leaks

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A machine may be busy: how long an example takes says nothing here.
hypothesis.settings.register_profile("flowspec", deadline=None)
hypothesis.settings.load_profile("flowspec")

leaks.watch_zeromq()
leaks.adopt_orphans()
blocking.watch_loops()
hanging.watch_loops()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread, process, ZeroMQ socket or context, or (see below) a task behind."""
    if "torch" in sys.modules:
        # Tests share the machine's cores with other processes; small models gain nothing from threads.
        sys.modules["torch"].set_num_threads(1)
    before = leaks.possessions()
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("well_behaved_loop")
    yield
    left = leaks.left_since(before)
    assert not left, f"left behind: {', '.join(left)}"


@pytest.fixture(autouse=True)
def stages_start_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in this process time each size of a segment once: they do so for 0.3 s, and toy models need no figures."""
    introduction = sys.modules.get("flowspec.roles.introduction")
    if introduction is not None:
        monkeypatch.setattr(introduction, "measure", partial(introduction.measure, budget=0.0))


@pytest.fixture
async def well_behaved_loop() -> AsyncIterator[None]:
    """Fails a test that leaves a task behind (before the loop is closed, which would cancel it) or blocks the loop."""
    before = asyncio.all_tasks()
    blocking.watch.long.clear()
    yield
    left = leaks.tasks_left(before)
    assert not left, f"left behind: {', '.join(left)}"
    assert not blocking.watch.long, f"blocked the event loop: {', '.join(blocking.watch.long)}"
