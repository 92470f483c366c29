"""The guards of conftest.py see what tests leave behind and who blocks the loop, and let pass what ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
import zmq.asyncio

from tests import blocking, leaks


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "PATIENCE", 0.05)


@contextlib.contextmanager
def seen(words: str) -> Iterator[None]:
    """Within, the guard sees one thing more than before, which `words` describes; afterwards it must be gone."""
    before = leaks.possessions()
    yield
    (left,) = leaks.left_since(before)
    assert words in left


def test_a_thread_is_seen() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="forgotten")
    with seen("the thread 'forgotten'"):
        thread.start()
    gate.set()
    thread.join()


def test_a_process_is_seen() -> None:
    with seen("the process"):
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.communicate(b"\n")


def test_a_process_whose_parent_died_is_seen() -> None:
    program = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdout=2).pid)"
    read, write = os.pipe()
    with seen("the process"):
        subprocess.run([sys.executable, "-c", program], stdin=read, stdout=subprocess.PIPE, check=True)
    os.close(read)
    os.close(write)


def test_sockets_and_contexts_are_seen() -> None:
    with seen("a ZeroMQ context"):
        context = zmq.Context()
    with seen("a socket of type PUSH"):
        socket = context.socket(zmq.PUSH)
    socket.close()
    context.term()


async def test_sockets_of_asyncio_are_seen_once() -> None:
    with zmq.asyncio.Context() as context:
        with seen("a socket of type PULL"):
            socket = context.socket(zmq.PULL)
        socket.close()


async def test_a_task_is_seen() -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    assert leaks.tasks_left(before) == ["the task forgotten: Event.wait"]
    task.cancel()
    await asyncio.wait([task])
    assert leaks.tasks_left(before) == []


def test_the_servers_of_multiprocessing_may_stay() -> None:
    before = leaks.possessions()
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    process.close()
    assert leaks.left_since(before) == []


def compute(seconds: float) -> None:
    """Keep this thread's processor busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_a_task_that_computes_on_the_loop_is_seen_and_the_test_itself_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking, "LIMIT", 0.02)

    async def block() -> None:
        compute(0.03)

    compute(0.03)
    await asyncio.sleep(0)
    assert blocking.watch.long == []
    await asyncio.create_task(block())
    (seen_step,) = blocking.watch.long
    assert "Task" in seen_step
    blocking.watch.long.clear()
