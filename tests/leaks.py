"""What a test may leave behind: nothing. Sees threads, processes, ZeroMQ sockets and contexts, and asyncio tasks.

Things end a little after they were told to, so the guard waits for an end, up to a deadline, before it complains.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.garbage import gc as collector

PATIENCE = 5.0
"""Seconds that what was told to end may take."""

LIBRARY_THREADS = ("asyncio_", "tqdm_monitor")
"""Beginnings of the names of threads that belong to others: to the loop's executor, which ends with the loop, or to a
library, which keeps one for good."""

_PR_SET_CHILD_SUBREAPER = 36

_sockets: weakref.WeakSet[zmq.Socket[Any]] = weakref.WeakSet()
_contexts: weakref.WeakSet[zmq.Context[Any]] = weakref.WeakSet()


def watch_zeromq() -> None:
    """From now on, remember every socket and context that is made (shadows of others are not counted).

    pyzmq's own collector, with its thread, context and sockets, is started before, and so not among them.
    """
    collector.start()
    assert collector._push_socket is not None

    def remember(kind: type, found: weakref.WeakSet[Any]) -> None:
        construct = kind.__init__  # type: ignore[misc]

        def remembering(self: Any, *arguments: Any, **options: Any) -> None:
            construct(self, *arguments, **options)
            if not self._shadow:
                found.add(self)

        kind.__init__ = remembering  # type: ignore[misc]

    remember(zmq.Socket, _sockets)
    remember(zmq.Context, _contexts)


def adopt_orphans() -> None:
    """Have grandchildren whose parent died become children of this process, so that they can be seen (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Possessions:
    """What this process has at a moment."""

    threads: frozenset[threading.Thread]
    processes: frozenset[int]
    sockets: frozenset[int]
    contexts: frozenset[int]


def possessions() -> Possessions:
    return Possessions(
        frozenset(threading.enumerate()),
        frozenset(descendants()),
        frozenset(id(socket) for socket in _open(_sockets)),
        frozenset(id(context) for context in _open(_contexts)),
    )


def left_since(before: Possessions) -> list[str]:
    """What is there now and was not `before`, in words; waits for what is about to end."""
    deadline = time.monotonic() + PATIENCE
    found = [f"the thread {thread.name!r}" for thread in _new_threads(before, deadline)]
    found += [f"the process {pid}: {_command(pid)}" for pid in _new_processes(before, deadline)]
    found += [f"a socket of type {socket._type_name}" for socket in _open(_sockets) if id(socket) not in before.sockets]
    found += ["a ZeroMQ context" for context in _open(_contexts) if id(context) not in before.contexts]
    return found


def tasks_left(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks of the running loop that were not there `before` and do not end, in words."""
    current = asyncio.current_task()
    return [
        f"the task {task.get_name()}: {getattr(task.get_coro(), '__qualname__', task.get_coro())}"
        for task in asyncio.all_tasks()
        if task not in before and task is not current
    ]


def _open(found: weakref.WeakSet[Any]) -> list[Any]:
    return [each for each in list(found) if not each.closed]


def _new_threads(before: Possessions, deadline: float) -> Iterator[threading.Thread]:
    for thread in threading.enumerate():
        if thread in before.threads or thread.name.startswith(LIBRARY_THREADS):
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            yield thread


def _new_processes(before: Possessions, deadline: float) -> Iterator[int]:
    # Both serve every process that multiprocessing starts from here on, and end with this one.
    allowed = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}  # type: ignore[attr-defined]
    for pid in descendants() - before.processes - allowed:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            end = os.pidfd_open(pid)
            try:
                ended, _, _ = select.select([end], [], [], max(0.0, deadline - time.monotonic()))
            finally:
                os.close(end)
            if not ended:
                yield pid


def descendants() -> set[int]:
    """The processes that descend from this one and have not ended; empty where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The command's name, in parentheses, may hold anything; after it come the state and the parent.
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(entry.parent.name)] = int(parent)
    found: set[int] = set()
    waiting = {os.getpid()}
    while waiting:
        waiting = {pid for pid, parent in parents.items() if parent in waiting}
        found |= waiting
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "?"
