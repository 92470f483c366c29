"""What ends a node: the tasks that it runs, and what the event loop calls for it."""

from __future__ import annotations

import asyncio

import pytest

from flowspec.errors import PipelineError
from flowspec.runtime.node import Node


class Empty(Node):
    async def _open(self) -> None:
        pass

    async def _close(self) -> None:
        pass

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
    assert heard == [1, 2]
