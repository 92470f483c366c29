"""Watches over the stages: beacons and probes until every channel is proven, heartbeats after that.

It drives a `Handshake` with a clock and sockets, and tells its owner when the pipe becomes ready, or loses a stage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from flowspec.errors import PeerTimeout
from flowspec.roles.handshake import Handshake
from flowspec.topology import Topology
from flowspec.transport.base import Receiver, Sender
from flowspec.wire.messages import Beacon, Heartbeat, Hello, Leaving, Message, Probe, ProbeSeen, Shutdown, Stopped

logger = logging.getLogger(__name__)

PROBE_INTERVAL = 0.1
"""Seconds between two beacons and probes while the pipe is not ready."""

MEASURED_PROBES = 8
"""Probes through the whole pipe before it counts as ready; the fastest one tells what the links take."""

SILENT_BEATS = 3
"""Heartbeats that a stage must have left out before another of its name may take its place."""

TYPICAL_TOKENS = 16
"""Segment size for which `link_seconds` is given."""


class PipeWatch:
    """`ready_changed(ready)`, `lost(node, reason)` and `in_flight()` are set by the owner and called from the loop."""

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
        self.in_flight: Callable[[], int] = lambda: 0
        """Segments that have not come back."""
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
        while True:
            await self._hints.send(
                Beacon(self._incarnation, self._handshake.welcomed, tuple(self._handshake.refused.items()))
            )
            if not self.ready and self._handshake.introduced:
                self._probe()
            for peer in self._handshake.silent(time.monotonic(), self._topology.timeouts.heartbeat_deadline):
                self._stage_lost(
                    peer.name, f"no heartbeat from {peer.name} for {self._topology.timeouts.heartbeat_deadline:g} s"
                )
            self._notice_stall(time.monotonic())
            interval = self._topology.timeouts.heartbeat_interval if self.ready else PROBE_INTERVAL
            try:
                async with asyncio.timeout(interval):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

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

    def link_seconds(self, token_bytes: int) -> tuple[float, ...]:
        """Per hop, coordinator to stage 1 first and tail to coordinator last: seconds for a typical segment."""
        hops = len(self._topology.stages) + 1
        measured = min(self._round_trips, default=0.0) / hops
        names = [self._topology.draft_node.name, *(stage.name for stage in self._topology.stages)]
        times = []
        for sender, receiver in zip(names, [*names[1:], names[0]], strict=True):
            link = self._topology.link_emulation(sender, receiver)
            carries_hidden = sender != names[0] and receiver != names[0]
            busy = TYPICAL_TOKENS * token_bytes / link.rate if link and link.rate and carries_hidden else 0.0
            times.append(measured + busy)
        return tuple(times)

    def moved(self) -> None:
        """A segment was sent or came back."""
        self._moved_at = time.monotonic()

    def _notice_stall(self, now: float) -> None:
        seconds = self._topology.timeouts.progress
        if self.ready and self.in_flight() and now - self._moved_at > seconds:
            self._moved_at = now
            self.lost(self._topology.draft_node.name, f"segments in flight have not moved for {seconds:g} s")

    def hello(self, message: Hello) -> None:
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
        sent = self._probes.pop(message.nonce, None) if self._from_tail(message) else None
        if sent is not None:
            self._round_trips.append(time.perf_counter() - sent)
            if not self.ready and len(self._round_trips) < MEASURED_PROBES:
                self._probe()
        if not self.ready and self._handshake.ready and len(self._round_trips) >= MEASURED_PROBES:
            self.ready = True
            self._became_ready.set()
            self.ready_changed(True)

    def heartbeat(self, message: Heartbeat) -> None:
        self._handshake.heartbeat(message, time.monotonic())

    def leaving(self, message: Leaving) -> None:
        self._handshake.leaving(message.node, message.incarnation)

    def died(self, name: str, reason: str) -> None:
        """Somebody saw a stage end: its silence need not be waited for."""
        peer = self._handshake.peers[name]
        if peer.hello is not None and not peer.lost:
            peer.lost, peer.seen = True, set()
            self._stage_lost(name, reason)

    def leaving_stages(self) -> list[str]:
        return [peer.name for peer in self._handshake.peers.values() if peer.leaving]

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
        self._round_trips.clear()
        if self.ready:
            self.ready = False
            self._became_ready.clear()
            self.ready_changed(False)
        self.lost(stage, reason)
