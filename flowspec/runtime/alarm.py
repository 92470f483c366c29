"""Waiting in an event loop until a moment, to a tenth of a millisecond: loops count in whole milliseconds.

A thread sleeps, since the kernel's own timers are fine enough, and wakes the loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from types import TracebackType
from typing import Self

from flowspec.runtime.lateness import Lateness

_Waiting = tuple[float, "asyncio.Future[None]", asyncio.AbstractEventLoop]


class Alarm:
    """`async with Alarm(name) as alarm: await alarm.until(when)`; one wait at a time."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._lateness = Lateness()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancelled.set()
        self._queue.put(None)
        # It has nothing left to do but to return.
        self._thread.join(1.0)

    async def until(self, when: float) -> None:
        """Return at `when` (`time.perf_counter` seconds), at once when that is over."""
        asked = when - self._lateness.lead
        if asked <= time.perf_counter():
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.put((asked, future, loop))
        await future
        self._lateness.woke(time.perf_counter() - asked)

    def _work(self) -> None:
        while (waiting := self._queue.get()) is not None:
            when, future, loop = waiting
            left = when - time.perf_counter()
            if left > 0 and self._cancelled.wait(left):
                return
            loop.call_soon_threadsafe(_ring, future)
            del waiting, future, loop


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
