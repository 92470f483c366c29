"""Asynchronous tests that hang say where: after `SECONDS` all tasks' stacks are printed, and the test is cancelled.

Without that a hang shows nothing but a loop that waits, and a run that somebody has to stop.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, TextIO

SECONDS = 270.0
"""Longer than any test takes on a busy machine, and shorter than pytest's `faulthandler_timeout`."""


def watch_loops() -> None:
    """From now on, look after everything that a runner runs."""
    run = asyncio.Runner.run

    def watched_run(
        self: asyncio.Runner, main: Coroutine[Any, Any, Any], *, context: contextvars.Context | None = None
    ) -> Any:
        timer = self.get_loop().call_later(SECONDS, print_and_cancel, main, sys.__stderr__)
        try:
            return run(self, main, context=context)
        finally:
            timer.cancel()

    asyncio.Runner.run = watched_run  # type: ignore[method-assign, assignment]


def print_and_cancel(main: Coroutine[Any, Any, Any], output: TextIO | None) -> None:
    tasks = asyncio.all_tasks()
    print(f"\n{len(tasks)} tasks after {SECONDS:g} s:", file=output)
    for task in tasks:
        print(task.get_name(), *places(task.get_coro()), sep="\n    ", file=output)
        if task.get_coro() is main:
            task.cancel(f"it hung: {SECONDS:g} s are over")


def places(awaited: Any) -> Iterator[str]:
    """Where a coroutine waits, the innermost place last; a task itself knows the outermost alone."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        place = "" if frame is None else f", {frame.f_code.co_filename}:{frame.f_lineno}"
        yield f"{getattr(awaited, '__qualname__', awaited)}{place}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
