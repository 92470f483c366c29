"""Who keeps the event loop from everybody else: callbacks and task steps that compute for too long on its thread.

Counts the processor time of the loop's thread, not the time on the wall, so that a busy machine changes nothing; a step
that waits instead of computing is therefore not seen. The steps of the test itself may take as long as they like. Sees
asyncio's own loop only, not uvloop's.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

LIMIT = 0.5
"""Seconds of processor time that one step may take."""


@dataclass
class Watch:
    own: contextvars.Context | None = None
    """The context of the test or fixture that runs; a task that it starts has a copy."""
    long: list[str] = field(default_factory=list)


watch = Watch()


def watch_loops() -> None:
    """From now on, look at every step of every loop."""
    run, run_handle = asyncio.Runner.run, asyncio.Handle._run

    def watched_run(
        self: asyncio.Runner, main: Coroutine[Any, Any, Any], *, context: contextvars.Context | None = None
    ) -> Any:
        before, watch.own = watch.own, context
        try:
            return run(self, main, context=context)
        finally:
            watch.own = before

    def watched_handle(self: asyncio.Handle) -> None:
        began = time.thread_time()
        try:
            run_handle(self)
        finally:
            seconds = time.thread_time() - began
            if seconds > LIMIT and self._context is not watch.own:  # type: ignore[attr-defined]
                watch.long.append(f"{seconds:.2f} s of {self}")

    asyncio.Runner.run = watched_run  # type: ignore[method-assign, assignment]
    asyncio.Handle._run = watched_handle  # type: ignore[method-assign]
