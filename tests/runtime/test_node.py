"""What ends a node: the tasks that it runs, and what the event loop calls for it."""

from __future__ import annotations

import asyncio

import pytest

from flowspec.errors import PipelineError
from flowspec.runtime.node import Node


class Empty(Node):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.free = asyncio.Event()
        self.closed = 0

    async def _open(self) -> None:
        pass

    async def _close(self) -> None:
        await self.free.wait()
        self.closed += 1

    async def _drain(self) -> None:
        pass


async def test_a_callback_that_raises_ends_the_node_with_its_error() -> None:
    heard: list[int] = []

    def act(number: int) -> None:
        heard.append(number)
        if number > 1:
            raise KeyError("nobody expected this")

    async with asyncio.timeout(10.0), Empty("stage-9") as node:
        loop = asyncio.get_running_loop()
        loop.call_soon(node.guarded(act), 1)
        loop.call_soon(node.guarded(act), 2)
        with pytest.raises(PipelineError, match=r"stage-9.*KeyError.*nobody expected this"):
            await node.wait()
        node.free.set()
    assert heard == [1, 2]


async def test_a_node_of_which_a_task_fails_closes_itself(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise KeyError("nobody expected this")

    async with asyncio.timeout(10.0), Empty("stage-9") as node:
        node.spawn(work(), "work")
        node.spawn(fail(), "fail")
        await ended.wait()
        with pytest.raises(PipelineError, match="KeyError"):
            await node.wait()
        closing = [asyncio.create_task(node.close()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in closing), "who closes a node that is closing waits for its end"
        node.free.set()
        await asyncio.gather(*closing)
        assert node.closed == 1
    assert node.closed == 1
    assert "nobody expected this" in caplog.text, "nobody was in `wait` when it failed"
