"""A stage: a node that holds a contiguous block of layers, and passes segments on.

It reads the forward pipe in order, runs each segment through its layers, drops what broadcasts say is dead, and tells
the coordinator how it is. The last stage, the tail, also samples and publishes the verdicts. A stage knows no
policy, no drafter, no text and no client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import torch

from flowspec.errors import FlowspecError, PipelineError, TransportError
from flowspec.model.synthetic_block import AnyBlock
from flowspec.program import debugging
from flowspec.roles.departure import Departure
from flowspec.roles.examination import answer_examination, facts_of
from flowspec.roles.figures import stage_figures
from flowspec.roles.introduction import Introduction, load_stage
from flowspec.roles.session_table import SessionTable
from flowspec.roles.stage_session import StageSession, Step
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulated_link import over_link
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.runtime.metrics import Metric
from flowspec.runtime.node import Node
from flowspec.topology import Topology
from flowspec.transport.base import Receiver, Sender, StageChannels, Transport
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import (
    Beacon,
    Cancelled,
    Census,
    ClockAnswer,
    ClockQuery,
    Close,
    Credit,
    DraftTokens,
    Examine,
    Heartbeat,
    Leaving,
    Message,
    Open,
    OpenAcknowledged,
    Probe,
    ProbeSeen,
    Segment,
    Shutdown,
    Stopped,
    Trouble,
    Verdict,
)

logger = logging.getLogger(__name__)

HELLO_INTERVAL = 0.2
"""Seconds between two hellos while no beacon has answered."""

FAREWELL_SECONDS = 0.5
"""For the last word of a stage that was told to stop to find room in the return pipe."""

ACCELERATOR_ERRORS: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
"""After one of these nothing can be computed in this process any more."""

Handler = Callable[[Envelope], Awaitable[None]]
Progress = Callable[[str, int, int], None]
"""Called with (what happens, done, total) while a node starts."""


OWN_MESSAGES = (Open, Segment, Close, Census, Probe, Shutdown, Verdict, Cancelled, Beacon, ClockQuery, Examine)
"""What a stage itself hears, from the pipe or as a broadcast."""


class StageNode(Node):
    """`async with StageNode(topology, "stage-1") as node: await node.wait()`.

    Entering returns when the channels are bound and the layers loaded; the handshake goes on by itself. Messages of
    one's own types are handled with `on`; types that nobody handles travel on along the pipe.
    """

    def __init__(
        self,
        topology: Topology,
        name: str,
        *,
        transport: Transport | None = None,
        progress: Progress | None = None,
        plan: Topology | None = None,
        spare: str | None = None,
    ) -> None:
        """`spare`: the one that this is, if it stands in for stage `name`; `plan`: the topology without stand-ins."""
        super().__init__(name, close_deadline=topology.timeouts.close, drain_deadline=topology.timeouts.drain)
        self.topology = topology
        self.node = topology.node(name)
        self.index = topology.stage_index(name)
        self.is_tail = self.index == len(topology.stages) - 1
        self._plan = plan or topology
        self._spare = spare
        self._dismissed = False
        """A spare's place was taken away: it gets one anew, or none."""
        self._places: tuple[tuple[str, str], ...] = ()
        """Spares that stand in for stages, as the newest beacon says."""
        self._transport = transport
        self._progress = progress or (lambda *_: None)
        self._compute: ComputeThread | None = None
        self._channels: StageChannels | None = None
        self._coordinator: str | None = None
        self._welcomed = asyncio.Event()
        self._segments = 0
        self._handlers: dict[type[Message], Handler] = {}

    def on(self, kind: type[Message], handler: Handler) -> None:
        """Handle messages of a type of one's own (see `flowspec.wire.frames.register`), from pipe or broadcast."""
        if kind in self._handlers or kind in OWN_MESSAGES:
            raise PipelineError(f"messages of kind {kind.kind!r} are handled already", node=self.name)
        self._handlers[kind] = handler

    async def send_to_coordinator(self, message: Message) -> None:
        await self._return.send(message)

    async def ready(self) -> None:
        """Wait until the coordinator has welcomed this stage; raises what makes the node fail."""
        assert self._ended is not None, "the node was not started"
        welcomed = asyncio.ensure_future(self._welcomed.wait())
        watched: set[asyncio.Future[Any]] = {welcomed, self._ended}
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not welcomed.done():
                self._ended.result()
        finally:
            welcomed.cancel()

    @property
    def readiness(self) -> str:
        """What the stage still waits for; empty when the coordinator has welcomed it."""
        return "" if self._welcomed.is_set() else f"the coordinator {self.topology.draft_node.name}"

    @property
    def block(self) -> AnyBlock:
        return self._introduction.block

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # ---- lifetime ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        transport = self._transport
        if transport is None:
            from flowspec.transport.zeromq import ZeroMQTransport

            transport = ZeroMQTransport.of(self.topology)
        channels = self._channels = await transport.open_stage(self.topology, self.name)
        compute = self._compute = ComputeThread(f"{self.name} compute")
        self._introduction: Introduction = await compute.run(
            load_stage, self.topology, self.name, self.incarnation, self._progress
        )
        self._device = EmulatedDevice.like(self.node.emulate)
        self._sessions = SessionTable(self.name, self.block, compute, self._device, self.topology.limits.memory)
        self._return = over_link(channels.return_out, self.topology, self, self.topology.draft_node.name)
        self._forward: Sender | None = None
        self._verdicts: Sender | None = None
        if channels.forward_out is not None:
            self._forward = over_link(
                channels.forward_out, self.topology, self, self.topology.stages[self.index + 1].name
            )
        if channels.verdicts is not None:
            self._verdicts = over_link(
                channels.verdicts, self.topology, self, self.topology.draft_node.name, "verdicts"
            )
        self._departure = Departure(self.name, self._forward, self._verdicts, self._return, self._sessions.outboxes)
        self._queue: asyncio.Queue[Envelope] = asyncio.Queue(self.topology.limits.queue)
        if self.node.metrics_port is not None:
            await self.serve_metrics(
                self.node.metrics_bind, self.node.metrics_port, self._figures, lambda: self.readiness
            )
        self._progress("connecting", 0, 0)
        self.spawn(self._read_pipe(channels.forward_in), "forward pipe")
        self.spawn(self._read_broadcasts(channels.broadcasts), "broadcasts")
        self.spawn(self._work(), "segments")
        self.spawn(self._sessions.outboxes.send(self._return), "features")
        self.spawn(self._introduce(), "hello")
        self.spawn(self._beat(), "heartbeat")
        self.spawn(self._send_traces(), "traces")

    async def _close(self) -> None:
        if self._told_to_stop and self._welcomed.is_set() and self._channels is not None:
            # Nobody need wait for its silence, which will tell where there is no room for the word.
            with contextlib.suppress(TimeoutError, TransportError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._channels.return_out.send(Stopped(self.name, self.incarnation))
        if self._compute is not None and not await self._compute.close(self._close_deadline):
            logger.error("%s: a forward pass did not end within %g s", self.name, self._close_deadline)
        if self._channels is not None:
            await self._channels.close()

    async def _drain(self) -> None:
        if self._coordinator is not None:
            await self._return.send(Leaving(self.name, self.incarnation))
        await self._sessions.wait_empty()

    async def _introduce(self) -> None:
        """Say hello until the coordinator's beacon lists this incarnation; again when a new coordinator appears."""
        while True:
            if self._welcomed.is_set() or self.draining or self._dismissed:
                await asyncio.sleep(self.topology.timeouts.heartbeat_interval)
                continue
            await self._return.send(replace(self._introduction.hello, incarnation=self.incarnation, spare=self._spare))
            try:
                async with asyncio.timeout(HELLO_INTERVAL):
                    await self._welcomed.wait()
            except TimeoutError:
                continue
            self._progress("connected", 0, 0)

    async def _beat(self) -> None:
        beat = 0
        channels = self._channels
        assert self._compute is not None
        assert channels is not None
        while True:
            await asyncio.sleep(self.topology.timeouts.heartbeat_interval)
            beat += 1
            if not self._welcomed.is_set():
                continue
            await self._return.send(
                Heartbeat(
                    self.name,
                    self.incarnation,
                    beat,
                    self._segments,
                    self._compute.busy_seconds,
                    len(self._sessions),
                    self._sessions.rows,
                    self._queue.qsize(),
                    channels.refused,
                )
            )

    def _figures(self) -> list[Metric]:
        assert self._channels is not None
        assert self._compute is not None
        return stage_figures(
            ready=not self.readiness,
            segments=self._segments,
            busy_seconds=self._compute.busy_seconds,
            sessions=len(self._sessions),
            rows=self._sessions.rows,
            queued=self._queue.qsize(),
            channels=self._channels,
        )

    # ---- reading -----------------------------------------------------------------------------------------------------

    async def _read_pipe(self, pipe: Receiver) -> None:
        while True:
            envelope = await pipe.receive()
            if isinstance(envelope.message, Segment):
                if self._device.emulates:
                    self._device.arrived(envelope.message.ticket)
                if self._sessions.traced:
                    self._sessions.note_arrival(envelope.message)
                self._sessions.note_roster(envelope.message.roster)
            await self._queue.put(envelope)

    async def _read_broadcasts(self, broadcasts: Receiver) -> None:
        while True:
            envelope = await broadcasts.receive()
            message = envelope.message
            match message:
                case Verdict():
                    self._sessions.note(message)
                case Cancelled():
                    self._sessions.cancel(message)
                case Beacon():
                    await self._on_beacon(message)
                case ClockQuery(nonce):
                    await self._return.send(ClockAnswer(self.name, nonce, self._sessions.clock()))
                case Probe():
                    await self._return.send(ProbeSeen(self.name, self.incarnation, message.channel, message.nonce))
                case _ if type(message) in self._handlers:
                    await self._handlers[type(message)](envelope)

    async def _work(self) -> None:
        while True:
            envelope = await self._queue.get()
            message = envelope.message
            match message:
                case Segment():
                    await self._on_segment(message, envelope.tensors[0] if envelope.tensors else None)
                case Open():
                    refusal = await self._sessions.open(message)
                    await self.pass_on(envelope)
                    await self._return.send(OpenAcknowledged(self.name, message.session, message.epoch, refusal))
                case Close():
                    await self._sessions.close(message)
                    await self.pass_on(envelope)
                case Census():
                    await self.pass_on(envelope)
                    await self._sessions.free_absent(message.roster)
                case Probe():
                    await self._on_probe(envelope, message)
                case Examine():
                    await self._on_examine(envelope, message)
                case Shutdown():
                    # The coordinator stops: free everything, say so, and wait for the next coordinator.
                    await self.pass_on(envelope)
                    await self._forget_coordinator()
                    await self._return.send(Stopped(self.name, self.incarnation))
                case _:
                    await self._handlers.get(type(message), self.pass_on)(envelope)

    async def _on_examine(self, envelope: Envelope, message: Examine) -> None:
        arrived = time.perf_counter_ns()
        if self._forward is not None:
            onward = replace(message, sender=self.name, left=time.perf_counter_ns())
            await self._forward.send(onward, envelope.tensors)
        hello, draft = self._introduction.hello, self.topology.draft_node
        following = (draft.host, draft.port + 1)
        if not self.is_tail:
            after = self.topology.stages[self.index + 1]
            following = (after.host, after.port)
        facts = facts_of(self.topology, self.name, hello.fingerprint, hello.tokenizer)
        answer = answer_examination(envelope, arrived, facts, self._return, following, tail=self.is_tail)
        self.spawn(answer, "examination")

    async def pass_on(self, envelope: Envelope) -> None:
        """Send a message on along the pipe; at the tail it ends here."""
        if self._forward is not None:
            await self._forward.send(envelope.message, envelope.tensors)

    # ---- segments ----------------------------------------------------------------------------------------------------

    async def _on_segment(self, segment: Segment, hidden: torch.Tensor | None) -> None:
        if self.index == 0:
            await self._return.send(Credit(self.name, segment.ticket))
        await self._sessions.free_absent(segment.roster)
        session = self._sessions.find(segment.session, segment.epoch)
        step, left, carried = Step(DraftTokens(), None, 0), 0, None
        if session is not None and segment.number == session.next_number:
            session.next_number += 1
            step, left, carried = await self._step(session, segment, hidden)
        elif session is not None:
            reason = f"segment {session.next_number} never arrived: the next one was {segment.number}"
            await self._give_up(session, reason)
        trace = session.trace if session is not None else None
        if carried is None:
            left = trace.clock() if trace is not None else 0
            carried = await self._departure.send(segment, step)
        await self._departure.publish(segment, step)
        if trace is not None:
            if step.moved and step.verdict is not None:
                trace.verdict(segment.ticket, step.verdict, at=left)
            kept = step.computed if self.is_tail else len(step.draft)
            trace.left(segment, step.computed, kept, abandoned=step.abandoned, at=left, size=carried)

    async def _step(
        self, session: StageSession, segment: Segment, hidden: torch.Tensor | None
    ) -> tuple[Step, int, int | None]:
        """What `_compute_and_send` gives."""
        assert self._compute is not None
        self._segments += 1
        try:
            return await self._compute.run(self._compute_and_send, session, segment, hidden)
        except FlowspecError as error:
            await self._give_up(session, str(error))
        except ACCELERATOR_ERRORS:
            raise
        except Exception as error:
            # One request must not end everybody's.
            reason = f"{type(error).__name__}: {error}"
            logger.error("%s cannot compute a segment: %s", self.name, reason, exc_info=debugging())
            await self._give_up(session, reason)
        return Step(DraftTokens(), None, 0), 0, None

    def _compute_and_send(
        self, session: StageSession, segment: Segment, hidden: torch.Tensor | None
    ) -> tuple[Step, int, int | None]:
        """On the compute thread: the step, and if it was sent at once, when, on a trace's clock, and how many bytes."""
        trace = session.trace
        step = session.step(segment, hidden) if trace is None else session.traced_step(segment, hidden)
        left = 0 if trace is None else trace.clock()
        if self.is_tail and session.taps:
            return step, left, None
        return step, left, self._departure.at_once(segment, step)

    async def _give_up(self, session: StageSession, reason: str) -> None:
        await self._return.send(Trouble(self.name, session.session, session.epoch, reason))
        await self._sessions.free(session.session)

    async def _send_traces(self) -> None:
        """Task: send what was noted of traced sessions that are over."""
        while True:
            trace = await self._sessions.traces.get()
            for message in trace.messages(self.name):
                await self._return.send(message)

    # ---- handshake ---------------------------------------------------------------------------------------------------

    async def _on_probe(self, envelope: Envelope, probe: Probe) -> None:
        """A forward probe travels on, and makes the tail publish one of its own."""
        await self.pass_on(envelope)
        if self._verdicts is not None:
            await self._verdicts.send(Probe("verdicts", probe.nonce))
        await self._return.send(ProbeSeen(self.name, self.incarnation, probe.channel, probe.nonce))

    async def _on_beacon(self, beacon: Beacon) -> None:
        for incarnation, reason in beacon.refused:
            if incarnation == self.incarnation:
                raise PipelineError(
                    reason, node=self.name, hint="compare this node's name, model and topology with the coordinator's"
                )
        if beacon.incarnation != self._coordinator and self._coordinator is not None:
            await self._forget_coordinator()
        self._coordinator = beacon.incarnation
        if beacon.places != self._places:
            self._places = beacon.places
            self._aim()
        if self.incarnation not in beacon.welcomed:
            if self._welcomed.is_set():
                await self._begin_afresh()
        elif not self._welcomed.is_set():
            self._welcomed.set()
            await self._return.send(ProbeSeen(self.name, self.incarnation, "hints", 0))

    def _aim(self) -> None:
        """Send on to where the next stage is now: a spare may stand in for it."""
        if self._channels is not None and not self.is_tail:
            self._channels.aim(self._plan.with_stand_ins(self._places).forward_address(self.index + 1))

    async def _begin_afresh(self) -> None:
        """The coordinator has given this incarnation up: nothing that it held is wanted, and nothing of it is heard."""
        logger.warning("%s was taken for lost and begins afresh", self.name)
        self._welcomed.clear()
        self._dismissed = self._spare is not None
        self.renew()
        await self._sessions.free_all()

    async def _forget_coordinator(self) -> None:
        self._welcomed.clear()
        self._coordinator = None
        await self._sessions.free_all()
