"""The sessions of one stage: admitted under a memory limit, found by name and epoch, freed as soon as they are over.

With a session goes its outbox of features, where its drafter reads any of this stage.

Rows are made and given back on the compute thread; what was heard about a session is noted from the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time

from flowspec.errors import FlowspecError, LimitExceeded, RequestError
from flowspec.model.synthetic_block import AnyBlock
from flowspec.roles.feature_outbox import FeatureOutbox, FeatureOutboxes
from flowspec.roles.stage_session import StageSession, bytes_limit
from flowspec.roles.stage_trace import StageTrace
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.tracing.records import NodeClock
from flowspec.wire.messages import FINAL, Cancelled, Close, Open, RosterEntry, Segment, Verdict

logger = logging.getLogger(__name__)

MAX_TAPS = 8
"""Tensors that travel in one message."""


class SessionTable:
    """`memory` is what the caches of all sessions together may take, in bytes."""

    def __init__(self, node: str, block: AnyBlock, compute: ComputeThread, device: EmulatedDevice, memory: int) -> None:
        self._node = node
        self._block = block
        self._compute = compute
        self._device = device
        self._memory = memory
        self._sessions: dict[str, StageSession] = {}
        self._emptied = asyncio.Event()
        self._collecting: set[StageSession] = set()
        """Those whose collection is in the compute thread's queue."""
        self.outboxes = FeatureOutboxes()
        self.traced = 0
        """Sessions that are traced; while there are none, nothing is noted."""
        self.traces: asyncio.Queue[StageTrace] = asyncio.Queue()
        """Of traced sessions that are over, on their way to the coordinator."""
        self.clock: NodeClock = time.perf_counter_ns
        """What traces are noted by."""

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def rows(self) -> int:
        return sum(session.rows for session in self._sessions.values())

    def find(self, name: str, epoch: int) -> StageSession | None:
        session = self._sessions.get(name)
        return session if session is not None and session.epoch == epoch else None

    async def open(self, opened: Open) -> str:
        """Make the session, in place of one of an older epoch; returns why not, empty when it is there."""
        old = self._sessions.get(opened.session)
        if old is not None and old.epoch >= opened.epoch:
            return ""
        await self.free(opened.session)
        try:
            self._admit(opened)
            taps = self._block.taps_here(opened.taps)
            collected = None
            if taps:
                collected = self.outboxes.open(FeatureOutbox(self._node, opened.session, opened.epoch, taps))
            session = await self._compute.run(StageSession, opened, self._block, self._device, collected)
        except FlowspecError as error:
            return str(error)
        if opened.trace:
            session.trace = StageTrace(opened, self.clock)
            self.traced += 1
        self._sessions[opened.session] = session
        return ""

    def _admit(self, opened: Open) -> None:
        unknown = next((tap for tap in opened.taps if tap != FINAL and not 0 <= tap <= self._block.layer_count), None)
        if unknown is not None:
            raise RequestError(
                f"the drafter reads tap {unknown}, the model has {self._block.layer_count} layers", node=self._node
            )
        needed = bytes_limit(opened, self._block) + sum(session.bytes_limit for session in self._sessions.values())
        if len(set(opened.taps)) > MAX_TAPS:
            raise LimitExceeded("hidden states that a drafter reads", len(set(opened.taps)), MAX_TAPS, node=self._node)
        if needed > self._memory:
            raise LimitExceeded(
                "limits.memory (bytes of cache on a node)",
                needed,
                self._memory,
                node=self._node,
                hint="raise limits.memory in the topology, or ask for fewer tokens or fewer sessions at a time",
            )

    async def close(self, closed: Close) -> None:
        session = self._sessions.get(closed.session)
        if session is not None and session.epoch <= closed.epoch:
            await self.free(closed.session)

    async def free(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        self.outboxes.close(name)
        if session is not None:
            await self._compute.run(session.free)
            if session.trace is not None:
                self.traced -= 1
                self.traces.put_nowait(session.trace)
        if not self._sessions:
            self._emptied.set()

    async def free_all(self) -> None:
        for name in list(self._sessions):
            await self.free(name)

    async def free_absent(self, roster: tuple[RosterEntry, ...]) -> None:
        """What a roster does not list any more is over."""
        live = {entry.session for entry in roster}
        for name in [name for name in self._sessions if name not in live]:
            await self.free(name)

    async def wait_empty(self) -> None:
        while self._sessions:
            self._emptied.clear()
            await self._emptied.wait()

    # ---- what is heard ----

    def note_arrival(self, segment: Segment) -> None:
        """A segment was read from the pipe: for its trace alone."""
        session = self.find(segment.session, segment.epoch)
        if session is not None and session.trace is not None:
            session.trace.arrived(segment.ticket)

    def note_roster(self, roster: tuple[RosterEntry, ...]) -> None:
        for entry in roster:
            session = self.find(entry.session, entry.epoch)
            if session is None:
                continue
            if session.taps:
                self.outboxes.hear(entry)
                if entry.features >= session.row_limit:
                    session.stop_collecting()
            if entry.frontier is not None and entry.token is not None:
                self._note(session, entry.frontier, entry.token)

    def note(self, verdict: Verdict) -> None:
        session = self.find(verdict.session, verdict.epoch)
        if session is not None:
            self._note(session, verdict.frontier, verdict.token)

    def _note(self, session: StageSession, frontier: int, token: int) -> None:
        """What a verdict accepts is collected by a running forward between its layers, else as soon as may be."""
        if session.note(frontier, token) and session.taps and session not in self._collecting:
            self._collecting.add(session)
            self._compute.run(self._collect, session).add_done_callback(_log_failure)

    def _collect(self, session: StageSession) -> None:
        """On the compute thread. A verdict that is heard from now on asks for another collection."""
        self._collecting.discard(session)
        session.collect()

    def cancel(self, cancelled: Cancelled) -> None:
        """Stop working for the session; the close that follows in the pipe frees its rows."""
        session = self.find(cancelled.session, cancelled.epoch)
        if session is not None:
            session.cancel()


def _log_failure(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.error("features could not be collected: %s", error)
