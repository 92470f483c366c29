"""Who keeps the event loop from everybody else: callbacks and task steps that compute for too long on its thread.

Counts the processor time of the loop's thread, not the time on the wall, so that a busy machine changes nothing; a step
that waits instead of computing is therefore not seen; nor is the garbage collector, which has to look through all that
hundreds of tests have imported. The steps of the test itself may take as long as they like. Sees asyncio's own loop
only, not uvloop's.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections import defaultdict
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


class Collecting:
    """Processor time that the garbage collector took on each thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[int, float] = defaultdict(float)
        gc.callbacks.append(self._heard)

    def _heard(self, phase: str, _: dict[str, int]) -> None:
        sign = -1 if phase == "start" else 1
        self.seconds[threading.get_ident()] += sign * time.thread_time()


def watch_loops() -> None:
    """From now on, look at every step of every loop."""
    run, run_handle = asyncio.Runner.run, asyncio.Handle._run
    collecting, thread = Collecting(), threading.get_ident

    def watched_run(
        self: asyncio.Runner, main: Coroutine[Any, Any, Any], *, context: contextvars.Context | None = None
    ) -> Any:
        before, watch.own = watch.own, context
        try:
            return run(self, main, context=context)
        finally:
            watch.own = before

    def watched_handle(self: asyncio.Handle) -> None:
        began = time.thread_time() - collecting.seconds[thread()]
        try:
            run_handle(self)
        finally:
            seconds = time.thread_time() - collecting.seconds[thread()] - began
            if seconds > LIMIT and self._context is not watch.own:  # type: ignore[attr-defined]
                watch.long.append(f"{seconds:.2f} s of {self}")

    asyncio.Runner.run = watched_run  # type: ignore[method-assign, assignment]
    asyncio.Handle._run = watched_handle  # type: ignore[method-assign]
