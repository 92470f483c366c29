"""A spare: a node that holds nothing and says that it lives, until a beacon gives it the place of a stage.

Then it loads the layers of that stage and is that stage, under its name and at its own address, until a beacon takes
the place away again. What a stage does is `stage`'s business.
"""

from __future__ import annotations

import asyncio
import logging

from flowspec.roles.spare_examination import examine_spare
from flowspec.roles.stage import Progress, StageNode
from flowspec.runtime.node import Node
from flowspec.topology import Topology
from flowspec.transport.base import SpareChannels, Transport
from flowspec.wire.messages import Beacon, Examine, Leaving, SpareExamined, Standby

logger = logging.getLogger(__name__)


class SpareNode(Node):
    """`async with SpareNode(topology, "spare-1") as node: await node.wait()`."""

    def __init__(
        self, topology: Topology, name: str, *, transport: Transport | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(name, close_deadline=topology.timeouts.close, drain_deadline=topology.timeouts.drain)
        self.topology = topology
        self.stage: StageNode | None = None
        """What it is now, when it stands in for a stage."""
        self._transport = transport
        self._progress = progress or (lambda *_: None)
        self._channels: SpareChannels | None = None
        self._places: tuple[tuple[str, str], ...] = ()
        """Who stands in for whom, as the newest beacon says."""
        self._examining = False
        self._place: str | None = None
        """The stage that it is to stand in for."""
        self._coordinator: str | None = None
        """Whose beacons are heard."""
        self._unknown_since: float | None = None
        """Since when there is a coordinator that has said nothing about the place; it will, when it has heard of it."""
        self._changed = asyncio.Event()

    @property
    def readiness(self) -> str:
        """A spare waits for nobody."""
        return ""

    async def ready(self) -> None:
        """Return at once: a spare is ready to wait as soon as it was started."""

    async def _open(self) -> None:
        transport = self._transport
        if transport is None:
            from flowspec.transport.zeromq import ZeroMQTransport

            transport = self._transport = ZeroMQTransport.of(self.topology)
        self._channels = await transport.open_spare(self.topology, self.name)
        self.spawn(self._announce(self._channels), "standby")
        self.spawn(self._listen(self._channels), "beacons")
        self.spawn(self._stand_in(), "place")
        self._progress("standing by", 0, 0)

    async def _close(self) -> None:
        if self.stage is not None:
            if self._told_to_stop:
                self.stage.stop()
            await self.stage.close()
        if self._channels is not None:
            await self._channels.close()

    async def _drain(self) -> None:
        if self._channels is not None and self._coordinator is not None:
            await self._channels.return_out.send(Leaving(self.name, self.incarnation))
        if self.stage is not None:
            self.stage.drain()
            await self.stage.wait()

    async def _announce(self, channels: SpareChannels) -> None:
        while True:
            if self.stage is not None or not self.draining:
                await channels.return_out.send(Standby(self.name, self.incarnation, self._place))
            await asyncio.sleep(self.topology.timeouts.heartbeat_interval)

    async def _listen(self, channels: SpareChannels) -> None:
        while True:
            message = (await channels.broadcasts.receive()).message
            if isinstance(message, Beacon):
                self._hear(message, asyncio.get_running_loop().time())
            elif isinstance(message, Examine) and not self._examining:
                self._examining = True
                self.spawn(self._answer(channels, message.nonce), "examination")

    async def _answer(self, channels: SpareChannels, nonce: int) -> None:
        """Task: say what this node could be."""
        try:
            spare = await examine_spare(self.topology, self.name, self._places, self._close_deadline)
            await channels.return_out.send(SpareExamined(self.name, nonce, spare))
        finally:
            self._examining = False

    def _hear(self, beacon: Beacon, now: float) -> None:
        """A coordinator gives and takes the place; one that is new here must have heard first who has it."""
        self._places = beacon.places
        place = next((stage for stage, spare in beacon.places if spare == self.name), None)
        if beacon.incarnation != self._coordinator:
            self._coordinator = beacon.incarnation
            self._unknown_since = now
        if place is not None:
            self._unknown_since = None
        elif self._unknown_since is not None and now - self._unknown_since < self.topology.timeouts.heartbeat_deadline:
            return
        if place != self._place or self._given_up:
            self._place = place
            self._changed.set()

    @property
    def _given_up(self) -> bool:
        """The stage that it was is none any more for the coordinator."""
        return self.stage is not None and self.stage.incarnation != self.incarnation

    async def _stand_in(self) -> None:
        """Task: be the stage whose place is this one's, as long as it is."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.stage is not None and (self.stage.name != self._place or self._given_up):
                await self._step_back()
            if self.stage is None and self._place is not None and not self.draining:
                await self._become(self._place)

    async def _become(self, place: str) -> None:
        logger.warning("%s stands in for %s", self.name, place)
        stage = StageNode(
            self.topology.with_stand_ins([(place, self.name)]),
            place,
            transport=self._transport,
            progress=self._progress,
            plan=self.topology,
            spare=self.name,
        )
        stage.incarnation = self.incarnation
        self.stage = await stage.__aenter__()
        self.spawn(self._follow(stage), f"stage {place}")

    async def _follow(self, stage: StageNode) -> None:
        """Task: what makes the stage fail makes the spare fail."""
        await stage.wait()

    async def _step_back(self) -> None:
        """Hold nothing again, as another incarnation: what is heard of the old one is no news."""
        assert self.stage is not None
        logger.warning("%s does not stand in for %s any more", self.name, self.stage.name)
        stage, self.stage = self.stage, None
        self.renew()
        await stage.close()
        self._progress("standing by", 0, 0)
