"""The lifetime of a node: start, tasks, drain, stop. Knows no role, no channel and no message.

A node is an async context manager. Entering it opens what it owns and starts its tasks; leaving it ends every task
before it returns. The first task that fails ends the node: it closes itself, so that others see it gone in place of a
node that does half of its work, and `wait` raises the error.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, ParamSpec, Self

from flowspec.errors import FlowspecError, PipelineError
from flowspec.runtime.metrics import Metric, MetricsServer

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class Node(abc.ABC):
    """Base of all nodes. Subclasses implement `_open`, `_close` and may override `_drain`.

    `incarnation` is drawn at start: a new one means that whatever the node held is gone.
    """

    def __init__(self, name: str, *, close_deadline: float = 5.0, drain_deadline: float = 60.0) -> None:
        self.name = name
        self.incarnation = secrets.token_hex(8)
        self._close_deadline = close_deadline
        self._drain_deadline = drain_deadline
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._draining = False
        self._told_to_stop = False
        """By `stop`, or by `drain` that has come to its end; not when it failed, or was closed without a word."""
        self._opened = False
        self._closing: asyncio.Task[None] | None = None
        self._heard = False
        """Somebody is in `wait`, or was."""
        self._metrics: MetricsServer | None = None

    def renew(self) -> None:
        """Be another incarnation from now on: what the node held is gone."""
        self.incarnation = secrets.token_hex(8)

    @abc.abstractmethod
    async def _open(self) -> None:
        """Open channels, load what is needed, `spawn` the tasks."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Free what `_open` took, also when it failed half-way. Tasks have ended by then."""

    @abc.abstractmethod
    async def _drain(self) -> None:
        """Return when nothing is left to finish."""

    async def __aenter__(self) -> Self:
        self._ended = asyncio.get_running_loop().create_future()
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        self._opened = True
        if self._failed:
            self._begin_to_close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` as a task of this node; its failure ends the node."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def guarded(self, act: Callable[P, None]) -> Callable[P, None]:
        """`act` for the event loop to call: the loop would only log an exception, here it ends the node like a task's.

        Who waited for what the call did not do would else wait for ever.
        """

        def acting(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                act(*args, **kwargs)
            except Exception as error:
                self._end(error)

        return acting

    async def serve_metrics(
        self, host: str, port: int, collect: Callable[[], Iterable[Metric]], healthy: Callable[[], str]
    ) -> None:
        """Answer with what `collect` and `healthy` return (see `MetricsServer`) until the node is closed."""
        self._metrics = MetricsServer(self.name, lambda: (*collect(), _tasks()), healthy)
        await self._metrics.open(host, port)

    async def wait(self) -> None:
        """Return when the node was stopped; raise what made it fail."""
        assert self._ended is not None, "the node was not started"
        self._heard = True
        await asyncio.shield(self._ended)

    def stop(self) -> None:
        """Stop now: requests that run are broken off."""
        self._told_to_stop = True
        self._end(None)

    def drain(self) -> None:
        """Finish what runs, take nothing new, then stop. A second call does nothing."""
        if not self._draining:
            self._draining = True
            self.spawn(self._drain_then_stop(), "drain")

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def _failed(self) -> bool:
        return self._ended is not None and self._ended.done() and self._ended.exception() is not None

    async def close(self) -> None:
        """End every task, then free everything; return when that is done, also for whoever calls it second."""
        await asyncio.shield(self._begin_to_close())

    def _begin_to_close(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._end(None)
            closing = self._end_and_free(asyncio.current_task())
            self._closing = asyncio.get_running_loop().create_task(closing, name=f"{self.name}: close")
        return self._closing

    async def _end_and_free(self, caller: asyncio.Task[Any] | None) -> None:
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self._close_deadline)
            for task in stuck:
                logger.error("%s did not end within %g s", task.get_name(), self._close_deadline)
        if self._metrics is not None:
            await self._metrics.close()
        await self._close()

    async def _drain_then_stop(self) -> None:
        try:
            async with asyncio.timeout(self._drain_deadline):
                await self._drain()
        except TimeoutError:
            logger.warning("%s: live sessions did not end within %g s, stopping", self.name, self._drain_deadline)
        self.stop()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._ended is None or self._ended.done():
            if error is not None and self._closing is None:
                logger.error("%s: %s", self.name, error)
            return
        if error is None:
            self._ended.set_result(None)
        else:
            if not isinstance(error, FlowspecError):
                wrapped = PipelineError(f"{type(error).__name__}: {error}", node=self.name)
                wrapped.__cause__ = error
                error = wrapped
            self._ended.set_exception(error)
            # Marks the error as seen: `wait` raises it, but an embedding program need not call `wait`.
            self._ended.exception()
            if not self._heard:
                logger.error("%s: %s", self.name, error)
            if self._opened:
                self._begin_to_close()


def _tasks() -> Metric:
    return Metric("flowspec_tasks", "Asyncio tasks of this process.", len(asyncio.all_tasks()))
