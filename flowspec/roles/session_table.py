"""The sessions of one stage: admitted under a memory limit, found by name and epoch, freed as soon as they are over.

Rows are made and given back on the compute thread; what was heard about a session is noted from the event loop.
"""

from __future__ import annotations

import asyncio

from flowspec.errors import FlowspecError, LimitExceeded
from flowspec.model.block import LayerBlock
from flowspec.roles.stage_session import StageSession, StageTime
from flowspec.runtime.compute import ComputeThread
from flowspec.wire.messages import Cancelled, Close, Open, RosterEntry, Verdict


class SessionTable:
    """`memory` is what the caches of all sessions together may take, in bytes."""

    def __init__(
        self, node: str, block: LayerBlock, compute: ComputeThread, stage_time: StageTime, memory: int
    ) -> None:
        self._node = node
        self._block = block
        self._compute = compute
        self._time = stage_time
        self._memory = memory
        self._sessions: dict[str, StageSession] = {}
        self._emptied = asyncio.Event()

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
            session = await self._compute.run(StageSession, opened, self._block, self._time)
        except FlowspecError as error:
            return str(error)
        self._sessions[opened.session] = session
        return ""

    def _admit(self, opened: Open) -> None:
        rows = opened.row_limit + sum(session.row_limit for session in self._sessions.values())
        if rows * self._block.row_bytes > self._memory:
            raise LimitExceeded(
                "limits.memory (bytes of cache on a node)",
                rows * self._block.row_bytes,
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
        if session is not None:
            await self._compute.run(session.free)
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

    def note_roster(self, roster: tuple[RosterEntry, ...]) -> None:
        for entry in roster:
            if entry.frontier is not None and entry.token is not None:
                session = self.find(entry.session, entry.epoch)
                if session is not None:
                    session.note(entry.frontier, entry.token)

    def note(self, verdict: Verdict) -> None:
        session = self.find(verdict.session, verdict.epoch)
        if session is not None:
            session.note(verdict.frontier, verdict.token)

    def cancel(self, cancelled: Cancelled) -> None:
        """Stop working for the session; the close that follows in the pipe frees its rows."""
        session = self.find(cancelled.session, cancelled.epoch)
        if session is not None:
            session.cancel()
