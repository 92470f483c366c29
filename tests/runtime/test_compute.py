"""The thread for calls that take long: whatever they raise is heard."""

from __future__ import annotations

import asyncio

import pytest

from flowspec.runtime.compute import ComputeThread


async def test_a_call_that_raises_what_no_future_takes_is_heard_too() -> None:
    thread = ComputeThread("compute")
    try:
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await thread.run(next, iter(()))
            assert await thread.run(int) == 0, "the thread goes on"
    finally:
        await thread.close()
