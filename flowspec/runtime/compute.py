"""One worker thread that runs calls in order, so that torch never blocks the event loop.

It knows nothing of models. A call that has begun runs to its end, also when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from flowspec.errors import PipelineError

P = ParamSpec("P")
R = TypeVar("R")

Call = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class ComputeThread:
    """`await run(function, ...)` runs it on the thread; results come back in the order of the calls.

    `busy_seconds` counts since the start.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        if self._closed:
            raise PipelineError(f"the compute thread {self.name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._queue.put((lambda: function(*args, **kwargs), future, loop))
        return future

    async def close(self, deadline: float = 10.0) -> bool:
        """Let what was asked for end, and the thread with it; False when that takes more than `deadline` seconds."""
        if self._closed:
            return not self._thread.is_alive()
        last = self.run(int)
        self._closed = True
        self._queue.put(None)
        await asyncio.wait({last}, timeout=deadline)
        if last.done():
            # Nothing is left to do for the thread but to return.
            self._thread.join(1.0)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            function, future, loop = call
            if future.cancelled():
                continue
            began = time.perf_counter()
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except StopIteration as caught:
                # No future takes one: whoever waits would wait for ever.
                error = RuntimeError(f"a call on the thread {self.name} raised StopIteration")
                error.__cause__ = caught
            except BaseException as caught:
                error = caught
            self.busy_seconds += time.perf_counter() - began
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                # The loop was closed while the call ran: nobody is left to hear the result.
                return
            del call, function, future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
