"""The faults of the campaign, and how each is inflicted: on processes and links, or within the in-memory transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import ClassVar

from flowspec.bench.cut_links import CutLinks
from flowspec.cluster import LocalCluster
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.topology import Topology
from flowspec.transport.memory import Faults, MemoryTransport
from flowspec.wire.messages import Close, Message, Open, Segment

DEADLINE_SECONDS = 0.5
"""The campaign's heartbeat deadline."""

TIMEOUTS = {"heartbeat_interval": 0.1, "heartbeat_deadline": DEADLINE_SECONDS, "recovery": 30.0, "close": 3.0}

STOP_SECONDS = 0.05
"""Between the two signals that stop a node at once."""


class ProcessFaults:
    """What befalls the processes of a local cluster and the links between them."""

    shares: ClassVar[dict[str, int]] = {"kill": 60, "freeze": 45, "stop": 25, "kill-coordinator": 25, "cut-link": 45}
    """Of 200 faults."""

    def __init__(self, cluster: LocalCluster, links: CutLinks, dice: random.Random) -> None:
        self._cluster = cluster
        self._links = links
        self._dice = dice
        self._later: set[asyncio.TimerHandle] = set()

    async def inflict(self, kind: str) -> None:
        match kind:
            case "kill":
                self._signal(self._some_stage(), signal.SIGKILL)
            case "freeze":
                process = self._some_stage()
                self._signal(process, signal.SIGSTOP)
                seconds = DEADLINE_SECONDS * self._dice.uniform(1.3, 2.5)
                self._after(seconds, lambda: self._signal(process, signal.SIGCONT))
            case "stop":
                # Once is a request to drain, which would wait for the streams. A frozen process would see only one.
                process = self._some_stage()
                self._signal(process, signal.SIGCONT)
                self._signal(process, signal.SIGTERM)
                await asyncio.sleep(STOP_SECONDS)
                self._signal(process, signal.SIGTERM)
            case "kill-coordinator":
                self._signal(self._cluster.processes[self._cluster.topology.draft_node.name], signal.SIGKILL)
            case "cut-link":
                port = self._dice.choice(self._links.ports)
                self._links.cut(port)
                self._after(self._dice.choice((0.0, 0.2, 1.0)), lambda: self._links.heal(port))
            case _:
                raise ValueError(kind)

    def quiet(self) -> None:
        """Take back what is still going on."""
        for handle in self._later:
            if not handle.cancelled():
                handle.cancel()
        self._later.clear()
        for port in self._links.ports:
            self._links.heal(port)
        for process in self._cluster.processes.values():
            self._signal(process, signal.SIGCONT)

    def _some_stage(self) -> int:
        return self._cluster.processes[self._dice.choice(self._cluster.topology.stages).name]

    def _signal(self, process: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.add(asyncio.get_running_loop().call_later(seconds, act))


class MemoryFaults:
    """What befalls the nodes and channels of a pipeline in this process, which it owns."""

    shares: ClassVar[dict[str, int]] = {"broadcasts": 150, "lost-in-pipe": 90, "replace": 50, "stop-coordinator": 10}
    """Of 300 faults."""

    def __init__(self, topology: Topology, transport: MemoryTransport, dice: random.Random) -> None:
        self.topology = topology
        self.transport = transport
        self._dice = dice
        self._stack = AsyncExitStack()
        self.stages: dict[str, StageNode] = {}
        self.coordinator: Coordinator | None = None

    async def __aenter__(self) -> MemoryFaults:
        for stage in self.topology.stages:
            await self._begin_stage(stage.name)
        await self._begin_coordinator()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.coordinator is not None:
            # First: it would wait a while for the answers of stages that are gone.
            await self.coordinator.close()
        await self._stack.aclose()

    async def inflict(self, kind: str) -> None:
        match kind:
            case "broadcasts":
                dropped, doubled, delayed, reordered = (self._dice.choice((0.0, 0.3, 1.0)) for _ in range(4))
                self.transport.faults = Faults(dropped, doubled, delayed, reordered)
            case "lost-in-pipe":
                self.transport.faults = Faults(drop_forward=self._losing(self._dice.choice((Segment, Open, Close))))
            case "replace":
                name = self._dice.choice(list(self.stages))
                await self.stages[name].close()
                await self._begin_stage(name)
            case "stop-coordinator":
                assert self.coordinator is not None
                await self.coordinator.close()
                await self._begin_coordinator()
            case _:
                raise ValueError(kind)

    def quiet(self) -> None:
        self.transport.faults = Faults()

    def _losing(self, kind: type[Message]) -> Callable[[int, Message], bool]:
        """Lose one message of that kind, and all others with a small chance."""
        left = [1]

        def loses(hop: int, message: Message) -> bool:
            if isinstance(message, kind) and left[0]:
                left[0] = 0
                return True
            return self._dice.random() < 0.002

        return loses

    async def _begin_stage(self, name: str) -> None:
        stage = StageNode(self.topology, name, transport=self.transport)
        self.stages[name] = await self._stack.enter_async_context(stage)

    async def _begin_coordinator(self) -> None:
        self.coordinator = await self._stack.enter_async_context(Coordinator(self.topology, transport=self.transport))
        await self.coordinator.ready()
