"""Seconds in which this process was awake: one that was held up cannot say that others were silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TICK_SECONDS: Final = 0.5
HELD_UP_SECONDS: Final = 2.0
"""A tick that lasts longer says that this process was held up; no more than this counts of it."""


class AwakeClock:
    """Goes inside `going`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held_up = 0
        """How often this process was."""
        self._limits: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        ticking = asyncio.create_task(self._run(), name="awake clock")
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            self.tick(now - before)
            before = now

    def tick(self, seconds: float) -> None:
        """So much time has passed since the last tick."""
        self.held_up += seconds > HELD_UP_SECONDS
        self.now += min(seconds, HELD_UP_SECONDS)
        for limit, end in list(self._limits.items()):
            if self.now > end:
                del self._limits[limit]
                limit.reschedule(asyncio.get_running_loop().time())

    async def was_held_up(self, before: int) -> bool:
        """Whether this process was held up since `held_up` was `before`, this moment included."""
        await asyncio.sleep(2 * TICK_SECONDS)
        return self.held_up > before

    @asynccontextmanager
    async def patience(self, seconds: float) -> AsyncIterator[None]:
        """Raises `TimeoutError` when the block takes longer."""
        async with asyncio.timeout(None) as limit:
            self._limits[limit] = self.now + seconds
            try:
                yield
            finally:
                self._limits.pop(limit, None)
