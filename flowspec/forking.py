"""Node processes forked from a server that has imported torch, and the line from each to this process.

Unix only, as fork is. Knows nothing of pipelines: who is started when, and what an end means, is the cluster's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import signal
import sys
import threading
import types
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flowspec.errors import FlowspecError, PipelineError, error_named
from flowspec.topology import Topology

PRELOAD = "flowspec.roles.preload"


def start_fork_server() -> None:
    """Begin to import torch in a server process, unless one runs already; returns at once.

    SIGINT is blocked in the server and so in every node: Ctrl-C reaches a whole terminal, but the nodes are to drain
    first when this process says so.
    """
    multiprocessing.set_forkserver_preload([PRELOAD])
    # It unblocks SIGINT when it starts, so it must be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_node(topology: Topology, name: str, connection: Connection, debug: bool, _: object) -> None:
    """Main function of a forked process; the import is the server's, done long ago."""
    # Where there is such a file (Linux), `ps -o comm`, `top` and `pkill` then know the node by its name.
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    try:
        from flowspec.roles.process import run_under_parent
    except ImportError as error:
        connection.send_bytes(json.dumps({"error": "PipelineError", "message": f"{name}: {error}"}).encode())
        sys.exit(PipelineError.exit_code)
    run_under_parent(topology, name, connection, debug)


class NodeProcess:
    """One node: its process and its line. Calls `heard` with what it says, and `ended` once when it is gone.

    `gone` is set, and `last_words` and `exit_code` are final, when `ended` is called. Must be made in a running loop,
    when the fork server is ready.
    """

    def __init__(
        self,
        topology: Topology,
        name: str,
        *,
        debug: bool,
        heard: Callable[[NodeProcess, Mapping[str, Any]], None],
        ended: Callable[[NodeProcess], None],
    ) -> None:
        self.name = name
        self.gone = asyncio.Event()
        self.last_words: FlowspecError | None = None
        self.exit_code: int | None = None
        self._heard = heard
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._line, theirs = multiprocessing.Pipe()
        try:
            self._process = _start(_be_node, name, topology, name, theirs, debug)
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self._sentinel = self._process.sentinel
        self._loop.add_reader(self._line.fileno(), self._listen)
        self._loop.add_reader(self._sentinel, self._died)

    def tell(self, word: str, **more: str) -> None:
        """Say "drain", "stop" or, to the draft node, "mourn" (`node`, `reason`) to a node that is still there."""
        if not self.gone.is_set():
            with contextlib.suppress(OSError):
                self._line.send_bytes(json.dumps({"do": word, **more}).encode())

    async def join(self, seconds: float) -> bool:
        """Wait for the end; False when it did not come within `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        return self.gone.is_set()

    def kill(self) -> None:
        self._process.kill()

    def release(self) -> None:
        """Free the line; a process that is still there loses it, and stops."""
        self._hang_up()
        self._loop.remove_reader(self._sentinel)
        if self.gone.is_set():
            self._process.close()

    def _listen(self) -> None:
        """Read one message; a line at its end is left to `_died`, which follows."""
        try:
            words = json.loads(self._line.recv_bytes())
        except (OSError, EOFError, ValueError):
            self._hang_up()
            return
        if "error" in words:
            self.last_words = error_named(words["error"], words["message"])
        self._heard(self, words)

    def _hang_up(self) -> None:
        if not self._line.closed:
            self._loop.remove_reader(self._line.fileno())
            self._line.close()

    def _died(self) -> None:
        self._loop.remove_reader(self._sentinel)
        # Last words may have come with the end.
        while not self._line.closed and self._line.poll():
            self._listen()
        self._process.join()
        self.exit_code = self._process.exitcode
        self.gone.set()
        self._ended(self)


class _HiddenMain:
    """Hides the program's main module from a process that is about to start: nodes need nothing of it.

    That saves its imports, and a program without `if __name__ == "__main__"` does not run again in every node. It is
    among the arguments of the process, which are pickled after multiprocessing has looked at the main module: then the
    module is put back at once, because starting may go on to wait for the server.
    """

    def __init__(self) -> None:
        self._main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")

    def put_back(self) -> None:
        sys.modules["__main__"] = self._main

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        self.put_back()
        return object, ()


def _start(target: Callable[..., None], name: str, *arguments: object) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    hidden = _HiddenMain()
    process = context.Process(target=target, args=(*arguments, hidden), name=name, daemon=True)
    try:
        process.start()
    finally:
        hidden.put_back()
    return process


def _be_nothing(_: object) -> None:
    """Main function of the process that shows that the server is ready."""


async def fork_server_ready() -> None:
    """Wait until the server has imported everything; before that, starting a process would block the event loop."""
    loop = asyncio.get_running_loop()
    shown: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if not shown.done():
            shown.set_exception(error) if error else shown.set_result(None)

    def show() -> None:
        error: Exception | None = None
        try:
            _start(_be_nothing, "flowspec: ready").join()
        except Exception as caught:
            error = PipelineError(f"the fork server of the local nodes has failed: {type(caught).__name__}: {caught}")
        # The loop may be gone: whoever waited was cancelled.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, error)

    # Not a thread of the loop's executor: a program that is interrupted must not wait for it.
    threading.Thread(target=show, name="flowspec: fork server", daemon=True).start()
    await shown
