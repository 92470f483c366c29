"""Watches over the stages: beacons and probes until every channel is proven, heartbeats after that.

It drives a `Handshake` with a clock and sockets, and tells its owner when the pipe becomes ready, loses a stage, loses
a message, or is given up because a lost stage does not come back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from flowspec.errors import PeerTimeout
from flowspec.roles.handshake import Handshake
from flowspec.roles.soundings import Outstanding, Soundings
from flowspec.roles.stand_ins import StandIns
from flowspec.schedule.events import LINK_TOKENS
from flowspec.topology import Topology
from flowspec.transport.base import Receiver, Sender
from flowspec.wire.messages import (
    Beacon,
    Heartbeat,
    Hello,
    Leaving,
    Message,
    Probe,
    ProbeSeen,
    Shutdown,
    Standby,
    Stopped,
)

logger = logging.getLogger(__name__)

PROBE_INTERVAL = 0.1
"""Seconds between two beacons and probes while the pipe is not ready."""

LEAST_INTERVAL = 0.01
"""Seconds between two looks at the clock, at least."""

EXCUSED_SECONDS = 0.2
"""A wait that ends so much later than it should means that this process was held up."""

MEASURED_PROBES = 8
"""Probes through the whole pipe before it counts as ready; the fastest one tells what the links take."""

SILENT_BEATS = 3
"""Heartbeats that a stage must have left out before another of its name may take its place."""

STALLED_TIMES = 2
"""Times `timeouts.progress` for which a session may wait for its own drafter, whose step may take it once."""


class PipeWatch:
    """The callables among its attributes are set by the owner, and called from the loop."""

    def __init__(
        self,
        topology: Topology,
        handshake: Handshake,
        incarnation: str,
        hints: Sender,
        send_down: Callable[[Message], None],
    ) -> None:
        self.ready = False
        self.ready_changed: Callable[[bool], None] = lambda ready: None
        self.lost: Callable[[str, str], None] = lambda stage, reason: None
        self.given_up: Callable[[str, str], None] = lambda stage, reason: None
        """Told once, of the stage that was lost first and is not back after `timeouts.recovery`; at the start of ""."""
        self.outstanding: Callable[[], Outstanding | None] = lambda: None
        """What was sent and has not come back; None when there is nothing."""
        self.missed: Callable[[Outstanding], None] = lambda outstanding: None
        """Told that whatever of this has not come back by now was lost on its way."""
        self.unattended: Callable[[], bool] = lambda: False
        """Whether sessions wait of which nothing was sent that has not come back."""
        self.stalled: Callable[[float], None] = lambda seconds: None
        """Told that this has been so for `seconds`, which no policy and no drafter needs."""
        self.wanted: Callable[[], bool] = lambda: False
        """Whether somebody waits for a stage that is leaving to be gone."""
        self.moved_in: Callable[[tuple[tuple[str, str], ...]], None] = lambda places: None
        """Told which spares stand in for which stages, when that changes."""
        self._stand_ins = StandIns(
            [spare.name for spare in topology.spares],
            patience=topology.timeouts.spare,
            deadline=topology.timeouts.heartbeat_deadline,
        )
        for stage in handshake.peers:
            # One that never comes is replaced too; to load takes longer than to come back.
            self._stand_ins.lost(stage, time.monotonic() + topology.timeouts.ready / 2)
        self._soundings = Soundings(list(handshake.peers))
        self._sounded_at = 0.0
        self._lost_at: float | None = time.monotonic()
        """Since when the pipe is not whole and there is hope for it: at first, since the start."""
        self._cause = ("", "")
        self._moved_at = time.monotonic()
        self._topology = topology
        self._handshake = handshake
        self._incarnation = incarnation
        self._hints = hints
        self._send_down = send_down
        self._nonce = 0
        self._probes: dict[int, float] = {}
        self._round_trips: list[float] = []
        self._wake = asyncio.Event()
        self._became_ready = asyncio.Event()

    async def run(self) -> None:
        """Task: send beacons and probes, notice silence."""
        asleep_until = time.monotonic()
        while True:
            # A process that was stopped has heard nobody meanwhile, which says nothing about the others.
            self._excuse(time.monotonic() - asleep_until - EXCUSED_SECONDS)
            await self._hints.send(
                Beacon(
                    self._incarnation,
                    self._handshake.welcomed,
                    tuple(self._handshake.refused.items()),
                    self._stand_ins.places,
                )
            )
            if not self.ready and self._handshake.introduced:
                self._probe()
            if self.ready:
                self._sound(time.monotonic())
            for peer in self._handshake.silent(time.monotonic(), self._topology.timeouts.heartbeat_deadline):
                self._stage_lost(
                    peer.name, f"no heartbeat from {peer.name} for {self._topology.timeouts.heartbeat_deadline:g} s"
                )
            self._notice_stall(time.monotonic())
            if self._topology.spares:
                self._fill_places(time.monotonic())
            self._notice_end(time.monotonic())
            interval = self._interval(time.monotonic())
            asleep_until = time.monotonic() + interval
            try:
                async with asyncio.timeout(interval):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    def _excuse(self, seconds: float) -> None:
        if seconds > 0.0:
            self._handshake.excuse(seconds)
            self._stand_ins.excuse(seconds)
            self._moved_at += seconds
            if self._lost_at is not None:
                self._lost_at += seconds

    def _fill_places(self, now: float) -> None:
        """Let spares stand in for stages that do not come back, and for spares that do not either."""
        for peer in self._handshake.peers.values():
            if peer.hello is not None and not peer.lost:
                self._stand_ins.found(peer.name)
        for stage in self._stand_ins.failed(now):
            self._lose(stage, f"the spare in the place of {stage} was lost")
        for stage in self.leaving_stages():
            if self.wanted() and (spare := self._stand_ins.idle(now)) is not None:
                self._lose(stage, f"{stage} is stopping and requests wait, so {spare} takes its place")
                self._stand_ins.hasten(stage, now)
        for stage in self._stand_ins.due(now):
            logger.warning("%s stands in for %s", dict(self._stand_ins.places)[stage], stage)
            self._places_changed(stage)

    def _places_changed(self, stage: str) -> None:
        self._handshake.reserve(stage, self._stand_ins.expected(stage))
        self.moved_in(self._stand_ins.places)
        self._wake.set()

    def standby(self, message: Standby) -> None:
        self._stand_ins.standby(message.node, message.incarnation, time.monotonic())
        if message.place is not None:
            self._adopt(message.place, message.node, message.incarnation)

    def _adopt(self, stage: str, spare: str, incarnation: str) -> None:
        """A spare says that it stands in for a stage: so it does, if no coordinator has said otherwise since."""
        peer = self._handshake.peers.get(stage)
        if peer is None or (peer.hello is not None and not peer.lost):
            return
        if self._stand_ins.adopt(stage, spare, incarnation, time.monotonic()):
            logger.warning("%s stands in for %s, and goes on to", spare, stage)
            self._places_changed(stage)

    def _interval(self, now: float) -> float:
        """Seconds until there is something to send, or somebody has been silent for too long."""
        timeouts = self._topology.timeouts
        regular = timeouts.heartbeat_interval if self.ready else PROBE_INTERVAL
        return min(regular, max(LEAST_INTERVAL, self._handshake.heard_last(now) + timeouts.heartbeat_deadline - now))

    async def wait_ready(self) -> None:
        """Wait until the pipe is ready; `PeerTimeout` names who is missing after the topology's `timeouts.ready`."""
        seconds = self._topology.timeouts.ready
        try:
            async with asyncio.timeout(seconds):
                await self._became_ready.wait()
        except TimeoutError:
            raise PeerTimeout(
                self._handshake.missing(),
                seconds,
                waiting_for="readiness",
                hint="are these nodes running, and do host and port in their topology agree with this one?",
            ) from None

    def link_seconds(self, token_bytes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per hop, coordinator to stage 1 first and tail to coordinator last: seconds for a typical segment, and the
        part of them for which it takes the link."""
        hops = len(self._topology.stages) + 1
        measured = min(self._round_trips, default=0.0) / hops
        names = [self._topology.draft_node.name, *(stage.name for stage in self._topology.stages)]
        carrying = []
        for sender, receiver in zip(names, [*names[1:], names[0]], strict=True):
            link = self._topology.link_emulation(sender, receiver)
            carries_hidden = sender != names[0] and receiver != names[0]
            busy = 0.0
            if link is not None and link.rate is not None and carries_hidden:
                busy = LINK_TOKENS * (link.bytes_per_token or token_bytes) / link.rate
            carrying.append(busy)
        return tuple(measured + busy for busy in carrying), tuple(carrying)

    def moved(self) -> None:
        """A segment was sent or came back."""
        self._moved_at = time.monotonic()

    @property
    def recovering(self) -> bool:
        """The pipe is not whole, and there is hope for it."""
        return self._lost_at is not None

    def _sound(self, now: float) -> None:
        """Send a probe after what is under way: what has not come when it comes was lost."""
        outstanding = self.outstanding()
        if outstanding is not None and now - self._sounded_at >= self._topology.timeouts.heartbeat_interval:
            self._sounded_at = now
            self._nonce += 1
            self._soundings.sent(self._nonce, outstanding)
            self._send_down(Probe("forward", self._nonce))

    def _notice_stall(self, now: float) -> None:
        if not self.ready:
            return
        seconds, still = self._topology.timeouts.progress, now - self._moved_at
        if self.outstanding() is not None:
            if still > seconds:
                self._moved_at = now
                name = self._soundings.silent_stage()
                # Whoever has this place, a spare too: it is the place that does not answer.
                self._lose(name, f"what is in flight has not moved for {seconds:g} s, and {name} answers no probe")
        elif not self.unattended():
            # Nobody waits for anything: the time counts from the next request.
            self._moved_at = now
        elif still > STALLED_TIMES * seconds:
            self._moved_at = now
            self.stalled(still)

    def _notice_end(self, now: float) -> None:
        seconds = self._topology.timeouts.recovery
        if self._lost_at is not None and now - self._lost_at > seconds:
            self._lost_at = None
            stage, reason = self._cause
            waited = f"; the pipe did not recover within {seconds:g} s, it waits for {self._handshake.missing()}"
            if not stage:
                waited = f"the pipe was not ready within {seconds:g} s, it waits for {self._handshake.missing()}"
            self.given_up(stage, reason + waited)

    def hello(self, message: Hello) -> None:
        if message.spare is not None:
            self._adopt(message.node, message.spare, message.incarnation)
            if self._stand_ins.expected(message.node) != message.incarnation:
                return
        known = message.incarnation in self._handshake.refused
        patience = SILENT_BEATS * self._topology.timeouts.heartbeat_interval
        replaced = self._handshake.hello(message, time.monotonic(), patience)
        if message.incarnation in self._handshake.refused and not known:
            logger.error("refused %s: %s", message.node, self._handshake.refused[message.incarnation])
        if replaced is not None:
            self._stage_lost(replaced.name, f"{replaced.name} was restarted: its caches are gone")
        self._wake.set()

    def probe_seen(self, message: ProbeSeen) -> None:
        self._handshake.probe_seen(message, time.monotonic())
        if message.channel == "forward" and self.ready:
            missed = self._soundings.answered(message.nonce, message.node)
            if missed is not None:
                self.missed(missed)
        sent = self._probes.pop(message.nonce, None) if self._from_tail(message) else None
        if sent is not None:
            self._round_trips.append(time.perf_counter() - sent)
            if not self.ready and len(self._round_trips) < MEASURED_PROBES:
                self._probe()
        if not self.ready and self._handshake.ready and len(self._round_trips) >= MEASURED_PROBES:
            self.ready = True
            self._lost_at = None
            self._moved_at = time.monotonic()
            self._became_ready.set()
            self.ready_changed(True)

    def heartbeat(self, message: Heartbeat) -> None:
        self._handshake.heartbeat(message, time.monotonic())

    def leaving(self, message: Leaving) -> None:
        self._handshake.leaving(message.node, message.incarnation)
        self._stand_ins.retire(message.incarnation)

    def stopped(self, message: Stopped) -> None:
        """A stage was told to stop, and has."""
        self._stand_ins.retire(message.incarnation)
        if self._handshake.known(message.node, message.incarnation) is not None:
            self._lose(message.node, f"{message.node} was stopped")

    def died(self, name: str, reason: str) -> None:
        """Somebody saw a stage, or a spare, end: its silence need not be waited for."""
        stage = self._stand_ins.stage_of(name)
        if stage is None and self._stand_ins.expected(name) is not None:
            return  # A spare has the place of this stage, and lives.
        stage = stage or name
        if stage in self._handshake.peers:
            self._lose(stage, reason)

    def _lose(self, name: str, reason: str) -> None:
        peer = self._handshake.peers[name]
        if peer.hello is not None and not peer.lost:
            self._handshake.lose(peer)
            self._stage_lost(name, reason)
            self._wake.set()
        elif self._stand_ins.expected(name) is not None:
            # A spare that was about to stand in is gone before it had said hello.
            self._stand_ins.lost(name, time.monotonic())
            self._places_changed(name)

    def leaving_stages(self) -> list[str]:
        """Those that end what runs and want nothing new."""
        return [peer.name for peer in self._handshake.peers.values() if peer.leaving and not peer.lost]

    def living_spares(self) -> tuple[str, ...]:
        """Those that are heard, whether they stand in for a stage or not."""
        return self._stand_ins.living(time.monotonic())

    async def shut_down(self, pipe: Sender, returns: Receiver) -> None:
        """Tell the stages that the coordinator stops, and wait for their answers. The owner bounds the time."""
        waiting = {peer.name for peer in self._handshake.peers.values() if peer.ready and not peer.leaving}
        if len(waiting) < len(self._handshake.peers):
            return
        await pipe.send(Shutdown("the coordinator stops"))
        while waiting:
            message = (await returns.receive()).message
            if isinstance(message, Stopped):
                waiting.discard(message.node)

    def _probe(self) -> None:
        self._nonce += 1
        self._probes = {nonce: sent for nonce, sent in self._probes.items() if nonce > self._nonce - 64}
        self._probes[self._nonce] = time.perf_counter()
        self._send_down(Probe("forward", self._nonce))

    def _from_tail(self, message: ProbeSeen) -> bool:
        return message.channel == "forward" and message.node == self._topology.stages[-1].name

    def _stage_lost(self, stage: str, reason: str) -> None:
        # What was sent before went through another pipe: its answers prove nothing of this one.
        self._round_trips.clear()
        self._probes.clear()
        self._soundings.clear()
        stood_in = self._stand_ins.expected(stage) is not None
        self._stand_ins.lost(stage, time.monotonic())
        if stood_in:
            self._places_changed(stage)
        if self.ready:
            self.ready = False
            self._lost_at = time.monotonic()
            self._cause = (stage, reason)
            self._became_ready.clear()
            self.ready_changed(False)
        self.lost(stage, reason)
