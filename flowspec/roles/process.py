"""One node as one process: what the operating system's signals and a parent's words mean to it.

Ctrl-C once drains, twice stops. Under a parent (see `ParentLine`) a node says how far it is and what it died of, obeys
"drain" and "stop", and stops when the parent is gone. It decides nothing about tokens and starts no other process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from flowspec.errors import FlowspecError, PeerTimeout, PipelineError
from flowspec.program import INTERRUPTED
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.spare import SpareNode
from flowspec.roles.stage import StageNode
from flowspec.runtime.limits import allow_many_connections
from flowspec.runtime.logs import configure_announced
from flowspec.runtime.loop import run
from flowspec.topology import Topology

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with (what the node does, done, total): "loading" with bytes, "connecting", at the draft node "ready" ..."""

MAX_WORDS = 64 * 1024
"""Bytes of one message of a parent."""


AnyNode = StageNode | SpareNode | Coordinator


class Brakes:
    """Drain at the first pull, stop at the second; before the node has started, break the start off."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._node: AnyNode | None = None
        self._pulls = 0

    def attach(self, node: AnyNode) -> None:
        self._node = node

    def pull(self) -> None:
        self._pulls += 1
        if self._pulls == 1:
            self.drain()
        else:
            self.stop()

    def drain(self) -> None:
        if self._node is None:
            self._task.cancel()
        else:
            self._node.drain()

    def stage_died(self, name: str, reason: str) -> None:
        if isinstance(self._node, Coordinator):
            self._node.stage_died(name, reason)

    def stop(self) -> None:
        if self._node is None:
            self._task.cancel()
        else:
            self._node.stop()


class ParentLine:
    """The pipe between a node and the process that started it: JSON both ways, and its end means the parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._brakes: Brakes | None = None

    def tell(self, **words: object) -> None:
        # A parent that is gone is noticed by `_hear`.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(words).encode())

    def listen(self, brakes: Brakes) -> None:
        self._brakes = brakes
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._hear)

    def hang_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _hear(self) -> None:
        assert self._brakes is not None
        try:
            words = json.loads(self._connection.recv_bytes(MAX_WORDS))
        except (OSError, EOFError, ValueError):
            self.hang_up()
            self._brakes.stop()
            return
        match words:
            case {"do": "drain"}:
                self._brakes.drain()
            case {"do": "stop"}:
                self._brakes.stop()
            case {"do": "mourn", "node": name, "reason": reason}:
                self._brakes.stage_died(name, reason)


async def serve(topology: Topology, name: str, report: Report, line: ParentLine | None = None) -> None:
    """Be node `name` of `topology` until it is told to stop; raises what makes the node fail."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    brakes = Brakes(task)
    for number in (signal.SIGTERM,) if line else (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, brakes.pull)
    if line:
        line.listen(brakes)

    last = ("", -1)

    def report_soon(state: str, done: int, total: int) -> None:
        # Nodes report from the threads that compute and read; more often than by percents tells nobody more.
        nonlocal last
        now = (state, done * 100 // total if total else 0)
        if now != last:
            last = now
            loop.call_soon_threadsafe(report, state, done, total)

    try:
        async with _node(topology, name, report_soon) as node:
            brakes.attach(node)
            if isinstance(node, Coordinator):
                await _until_ready(node, patient=line is None)
            await node.wait()
    finally:
        if line:
            line.hang_up()


async def _until_ready(coordinator: Coordinator, *, patient: bool) -> None:
    """Return when the pipe is READY or the node has ended; raises what makes it fail, or `PeerTimeout`.

    A patient one waits on: somebody may be walking from device to device.
    """
    ended = asyncio.ensure_future(coordinator.wait())
    ready = asyncio.ensure_future(coordinator.ready())
    try:
        while True:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return None
            try:
                return ready.result()
            except PeerTimeout as error:
                if not patient:
                    raise
                logger.warning("%s", error)
                ready = asyncio.ensure_future(coordinator.ready())
    finally:
        for future in (ready, ended):
            future.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)


def _node(topology: Topology, name: str, progress: Report) -> AnyNode:
    if name == topology.draft_node.name:
        return Coordinator(topology, progress=progress)
    if topology.spare(name) is not None:
        return SpareNode(topology, name, progress=progress)
    return StageNode(topology, name, progress=progress)


def take_share(topology: Topology, name: str) -> None:
    """Share the cores among the nodes of this node's host: threads, and where there are too few, the cores too."""
    bound = hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if bound else range(os.cpu_count() or 1)
    torch.set_num_threads(topology.thread_count(name, len(cores)))
    if bound:
        os.sched_setaffinity(0, topology.core_share(name, cores))


def run_alone(topology: Topology, name: str, report: Report) -> None:
    """Be a node in this process, for `flowspec node` and the programs in `nodes/`; raises what makes it fail."""
    take_share(topology, name)
    allow_many_connections()
    with contextlib.suppress(asyncio.CancelledError):
        run(serve(topology, name, report))


def run_under_parent(topology: Topology, name: str, connection: Connection, debug: bool) -> None:
    """The main function of a node that a cluster has started; its exit code is that of the error it died of."""
    # Ctrl-C reaches a whole terminal; what it means is up to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = ParentLine(connection)
    configure_announced(name)
    allow_many_connections()
    code = 0
    try:
        take_share(topology, name)
        run(serve(topology, name, lambda state, done, total: line.tell(state=state, done=done, total=total), line))
    except asyncio.CancelledError:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = error if isinstance(error, FlowspecError) else PipelineError(f"{type(error).__name__}: {error}")
        line.tell(error=type(known).__name__, message=str(known))
        code = known.exit_code
    connection.close()
    sys.exit(code)
