"""The coordinator: the draft node. It serves clients, asks the drafter, and carries out what the scheduler decides.

It is the only one that tells a client what was generated, each token once, after its verdict. It knows no layer and no
cache; what to send is the scheduler's to say, requests are the front desk's, the stages' health is the watch's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVarTuple

from flowspec.drafting.drafter import Drafter, build_drafter
from flowspec.errors import CoordinatorStopped, PipelineError
from flowspec.model.target import Target, open_target
from flowspec.roles.admission import Admission
from flowspec.roles.credit_timer import CreditTimer
from flowspec.roles.draft_desk import DraftDesk
from flowspec.roles.examination import Examination, facts_of
from flowspec.roles.feature_desk import FeatureDesk
from flowspec.roles.figures import coordinator_figures
from flowspec.roles.forward_desk import ForwardDesk
from flowspec.roles.front_desk import FrontDesk
from flowspec.roles.handshake import Handshake
from flowspec.roles.introduction import host_identity, use_threads
from flowspec.roles.pipe_watch import PipeWatch
from flowspec.roles.recovery import Recovery
from flowspec.roles.trace_desk import TraceDesk
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulated_link import over_link, own_bytes
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.runtime.metrics import Metric
from flowspec.runtime.node import Node
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.continuous import ContinuousSettings
from flowspec.schedule.events import (
    BreakSession,
    Command,
    EmitTokens,
    Event,
    FinishSession,
    GrowTree,
    OpenSession,
    PipeLost,
    PipeMeasured,
    PipeRestored,
    SegmentReturned,
    SegmentTaken,
    SendSegment,
    StopGrowth,
)
from flowspec.topology import Topology
from flowspec.transport.base import CoordinatorChannels, Transport
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import (
    Census,
    ClockAnswer,
    Close,
    Credit,
    Examined,
    Features,
    Heartbeat,
    Hello,
    Leaving,
    Message,
    NodeFacts,
    Open,
    OpenAcknowledged,
    ProbeSeen,
    Returned,
    Segment,
    SpareExamined,
    Standby,
    Status,
    Stopped,
    TraceRecords,
    Trouble,
)
from flowspec.wire.tensors import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")
Handler = Callable[[Envelope], Awaitable[None]]
Progress = Callable[[str, int, int], None]


OWN_MESSAGES = (
    *(Hello, ProbeSeen, Heartbeat, Leaving, OpenAcknowledged, Credit, Features, Returned, Trouble),
    *(TraceRecords, ClockAnswer, Examined, SpareExamined, Standby, Stopped),
)
"""What the coordinator itself hears on the return pipe."""


class Coordinator(Node):
    """`async with Coordinator(topology) as node: await node.ready(); await node.wait()`.

    Entering returns when the channels are bound and the drafter loaded; `ready` when every stage has proven its
    channels. `drafter` makes a drafter of one's own (see `flowspec.drafting.drafter.Drafter`) on the thread that will
    ask it, in place of the topology's.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        transport: Transport | None = None,
        progress: Progress | None = None,
        drafter: Callable[[Topology, Target], Drafter | None] | None = None,
    ) -> None:
        super().__init__(
            topology.draft_node.name, close_deadline=topology.timeouts.close, drain_deadline=topology.timeouts.drain
        )
        self.topology = topology
        self.scheduler = Scheduler(settings=ContinuousSettings.with_width(topology.drafter.width))
        self._transport = transport
        self._progress = progress or (lambda *_: None)
        self._make_drafter = drafter
        self._compute: ComputeThread | None = None
        self._reader: ComputeThread | None = None
        """Makes tokens of prompts, which may take long: beside the event loop, and beside the drafter."""
        self._channels: CoordinatorChannels | None = None
        self._credits = CreditTimer(self.scheduler.hold, self.guarded(lambda ticket: self.apply(SegmentTaken(ticket))))
        self._desk: FrontDesk | None = None
        self._outgoing = ForwardDesk()
        self._handlers: dict[type[Message], Handler] = {}

    def on(self, kind: type[Message], handler: Handler) -> None:
        """Handle messages of a type of one's own that stages send over the return pipe."""
        if kind in self._handlers or kind in OWN_MESSAGES:
            raise PipelineError(f"messages of kind {kind.kind!r} are handled already", node=self.name)
        self._handlers[kind] = handler

    def send_down(self, message: Message) -> None:
        """Put a message into the forward pipe, in order with the segments."""
        self._outgoing.put(message)

    def stage_died(self, name: str, reason: str) -> None:
        """For whoever saw the process of a stage end: its silence need not be waited for."""
        self._watch.died(name, reason)

    async def ready(self) -> None:
        """Wait until every stage is READY; raises what makes the node fail, or `PeerTimeout` naming who is missing."""
        assert self._ended is not None, "the node was not started"
        waiting = asyncio.ensure_future(self._watch.wait_ready())
        try:
            await asyncio.wait({waiting, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self._ended.result()
                raise PipelineError("the node was stopped before the pipeline was ready", node=self.name)
            waiting.result()
        finally:
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting

    @property
    def readiness(self) -> str:
        """What the pipe still waits for; empty when it is READY."""
        return self.handshake.missing()

    # ---- lifetime ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        transport = self._transport
        if transport is None:
            from flowspec.transport.zeromq import ZeroMQTransport

            transport = ZeroMQTransport.of(self.topology)
        channels = self._channels = await transport.open_coordinator(self.topology)
        self._compute = ComputeThread(f"{self.name} drafter")
        self._reader = ComputeThread(f"{self.name} prompts")
        await self._compute.run(self._load)
        first = self.topology.stages[0].name
        self._hints = over_link(channels.hints, self.topology, self, first, "hints")
        self._watch = PipeWatch(self.topology, self.handshake, self.incarnation, self._hints, self.send_down)
        self._watch.ready_changed = self._pipe_changed
        self._watch.moved_in = self._aim
        self._drafts = DraftDesk(
            self.drafter,
            self._compute,
            vocab_size=self._vocab_size,
            deadline=self.topology.timeouts.progress,
            apply=self.guarded(self.apply),
            device=EmulatedDevice.of_drafter(
                self.topology.draft_node.emulate, self.drafter.layers if self.drafter is not None else 0
            ),
        )
        self._features = FeatureDesk(self._hidden_size, self._drafts.take_features)
        self._drafts.abandon = self._features.abandon
        desk = self._desk = FrontDesk(
            self.admission,
            channels.clients,
            sessions=self.topology.limits.sessions,
            waiting=self.topology.limits.waiting,
            apply=self.apply,
            check_open=self._check_open,
            begin=self._drafts.open,
            end=self._session_ended,
            status=self._status,
            soon=self._soon,
            recalls=self._make_drafter is None and self.topology.effective_drafter.looks_text_up,
        )
        desk.hold = lambda: bool(self._watch.leaving_stages())
        self._watch.wanted = lambda: len(desk.waiting) > 0
        # Until the stages are there, requests wait for them as they do when one is lost.
        self.scheduler.handle(PipeLost())
        recovery = self._recovery = Recovery(desk, self.scheduler, self.apply)
        self._watch.lost, self._watch.given_up = recovery.stage_lost, recovery.pipe_given_up
        self._watch.outstanding, self._watch.missed = recovery.outstanding, recovery.missed
        self._watch.unattended, self._watch.stalled = recovery.unattended, recovery.stalled
        self._traces = TraceDesk(
            self.name,
            [stage.name for stage in self.topology.stages],
            tell=desk.tell,
            deadline=self.topology.timeouts.close,
            model=self.topology.draft_node.model,
            drafter=self._drafts.name,
        )
        pipe = over_link(channels.forward_out, self.topology, self, first)
        self._examination = Examination(
            self.topology,
            pipe,
            self._hints,
            facts=self._facts,
            waits_for=lambda: self.readiness,
            spares=self._watch.living_spares,
            tell=desk.tell,
            spawn=self.spawn,
        )
        desk.diagnose = self._examination.begin
        desk.untraced = self._traces.tell_none
        node = self.topology.draft_node
        if node.metrics_port is not None:
            await self.serve_metrics(node.metrics_bind, node.metrics_port, self._figures, lambda: self.readiness)
        sending = self._outgoing.run(pipe, self._hints, self._traces, completed=self._completed, left=self._carried)
        self.spawn(sending, "forward pipe")
        self.spawn(self._read_returns(), "return pipe")
        self.spawn(desk.read(), "clients")
        self.spawn(desk.read_prompts(self._reader), "prompts")
        self.spawn(desk.write(), "answers")
        self.spawn(self._watch.run(), "watch")
        self._progress("waiting", 0, 0)

    def _soon(self, act: Callable[[*Ts], None], *args: *Ts) -> None:
        """Call it when what runs now has ended, in the order of these calls."""
        asyncio.get_running_loop().call_soon(self.guarded(act), *args)

    def _load(self) -> None:
        """Tokenizer, drafter and the picture of the model; on the compute thread."""
        use_threads(self.topology.draft_node.threads)
        checkpoint = open_target(self.topology, self.topology.draft_node.model)
        self._hidden_size = checkpoint.hidden_size
        self.hidden_bytes = checkpoint.hidden_size * ITEM_BYTES[self.topology.stages[0].dtype]
        """Of one token on its way from stage to stage."""
        self.admission = Admission(self.topology, checkpoint)
        self._vocab_size = checkpoint.vocab_size
        self._progress("loading the drafter", 0, 0)
        make = self._make_drafter or build_drafter
        self.drafter = make(self.topology, checkpoint)
        self.handshake = Handshake(
            [stage.name for stage in self.topology.stages],
            coordinator=self.name,
            fingerprint=checkpoint.fingerprint(),
            tokenizer=checkpoint.tokenizer_hash(),
            layers=checkpoint.layer_count,
        )

    async def _close(self) -> None:
        self._credits.close()
        if self._desk is not None:
            self._desk.fail_all(CoordinatorStopped("the coordinator was stopped", node=self.name))
            await self._desk.flush()
            self._traces.close()
        if self._channels is not None:
            if self._desk is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._close_deadline):
                        await self._watch.shut_down(self._channels.forward_out, self._channels.return_in)
            await self._channels.close()
        if self._compute is not None and not await self._compute.close(self._close_deadline):
            logger.error("%s: a draft step did not end within %g s", self.name, self._close_deadline)
        if self._reader is not None and not await self._reader.close(self._close_deadline):
            logger.error("%s: a prompt was not tokenized within %g s", self.name, self._close_deadline)

    async def _drain(self) -> None:
        if self._desk is not None:
            await self._desk.idle.wait()

    def _pipe_changed(self, ready: bool) -> None:
        if ready:
            links, carrying = self._watch.link_seconds(self.hidden_bytes)
            self.apply(PipeMeasured(self.handshake.profile(links, carrying, host_identity())))
            self.apply(PipeRestored())
        self._progress("ready" if ready else "waiting", 0, 0)

    def _aim(self, places: tuple[tuple[str, str], ...]) -> None:
        """Send to where the first stage is now: a spare may stand in for it."""
        if self._channels is not None:
            self._channels.aim(self.topology.with_stand_ins(places).forward_address(0))

    # ---- carrying out ------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Let the scheduler decide, and carry its commands out. Never waits.

        Segments go first: the pipe waits for them, and nobody reads as fast as text is written.
        """
        happened = self._traces.happened(event, self.scheduler) if self._traces.live else None
        commands = self.scheduler.handle(event)
        for command in sorted(commands, key=lambda command: not isinstance(command, SendSegment)):
            self._carry_out(command)
        if happened is not None:
            self._traces.decided(happened, commands, self.scheduler)

    def _carry_out(self, command: Command) -> None:
        assert self._desk is not None
        match command:
            case SendSegment(session, epoch, number, ticket, decree, draft):
                self._outgoing.put(Segment(session, epoch, number, ticket, decree, draft, roster=()))
            case GrowTree():
                # Behind what is in the outgoing queue now: a step that has begun contends for the interpreter with it.
                self._soon(self._drafts.ask, command)
            case StopGrowth(session, epoch):
                self._drafts.stop(session, epoch)
            case EmitTokens():
                # The same; in the order of the commands.
                self._soon(self._desk.emit, command)
            case FinishSession(session, epoch):
                self._outgoing.put(Close(session, epoch))
                self._soon(self._desk.finish, command)
            case BreakSession(session, _, reason):
                logger.warning("session %s ends with an error: %s", session, reason)
                self._desk.fail(session, PipelineError(reason, session=session))
            case OpenSession(session, epoch):
                request = self._desk.requests[session]
                admitted = request.admitted
                request.epoch, request.unacknowledged = epoch, {stage.name for stage in self.topology.stages}
                self._features.open(session, epoch, request.taps, admitted.row_limit)
                self._outgoing.put(
                    Open(
                        session,
                        epoch,
                        admitted.row_limit,
                        admitted.sampling,
                        request.taps,
                        admitted.trace,
                        admitted.options.prunes,
                    )
                )
                if admitted.trace:
                    self._traces.open(request, epoch, self.handshake.on_other_machines(host_identity()))

    def _completed(self, segment: Segment) -> Segment:
        """A segment as it leaves."""
        self._watch.moved()
        return replace(segment, roster=self._features.acknowledge(self.scheduler.roster()))

    def _carried(self, session: str, size: int) -> None:
        """A link was charged so many bytes for a session."""
        request = None if self._desk is None else self._desk.requests.get(session)
        if request is not None:
            request.link_bytes += size

    # ---- the return pipe ---------------------------------------------------------------------------------------------

    async def _read_returns(self) -> None:
        assert self._channels is not None
        while True:
            envelope = await self._channels.return_in.receive()
            handler = self._handlers.get(type(envelope.message))
            if handler is not None:
                await handler(envelope)
            elif isinstance(envelope.message, Features):
                self._hear_features(envelope.message, envelope.tensors)
            else:
                self._hear(envelope.message)

    def _hear(self, message: Message) -> None:
        """What stages say; types that nobody handles are dropped."""
        assert self._desk is not None
        match message:
            case Returned():
                self._returned(message)
            case Credit():
                self._credits.begun(message.ticket)
            case OpenAcknowledged():
                self._recovery.opened(message)
            case Hello():
                self._watch.hello(message)
            case ProbeSeen():
                self._watch.probe_seen(message)
            case Heartbeat():
                self._watch.heartbeat(message)
                if message.sessions > len(self.scheduler.sessions) and self._watch.ready:
                    self.send_down(Census(self.scheduler.roster()))
            case Leaving():
                self._watch.leaving(message)
            case Stopped():
                self._watch.stopped(message)
            case Standby():
                self._watch.standby(message)
            case TraceRecords():
                self._traces.hear(message)
            case Examined():
                self._examination.hear(message)
            case SpareExamined():
                self._examination.hear_spare(message)
            case ClockAnswer():
                self._traces.clock_answered(message)
            case Trouble():
                self._recovery.session_broken(message)

    def _hear_features(self, message: Features, tensors: tuple[Tensor, ...]) -> None:
        assert self._desk is not None
        request = self._desk.requests.get(message.session)
        if request is not None:
            size = own_bytes(tensors)
            request.link_bytes += size
            if self._traces.live:
                self._traces.hear_features(message, size)
            self._features.hear(message, tensors)

    def _session_ended(self, session: str) -> None:
        self._features.close(session)
        self._drafts.close(session)
        self._traces.drop(session)

    def _returned(self, message: Returned) -> None:
        self._watch.moved()
        self._carried(message.session, message.carried_bytes)
        self.apply(
            SegmentReturned(
                message.ticket, message.session, message.epoch, message.number, message.frontier, message.token
            )
        )

    # ---- for the front desk ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raise when no request can be taken now, with what to do about it."""
        if self.draining:
            raise CoordinatorStopped("the coordinator is stopping and takes no new requests", node=self.name)
        if not self._watch.ready and not self._watch.recovering:
            raise PipelineError(f"the pipeline is not ready: it waits for {self.readiness}", node=self.name)

    def _status(self, request: str) -> Status:
        assert self._desk is not None
        assert self._channels is not None
        counts = self._desk.counts
        return Status(
            request,
            self._watch.ready,
            self.topology.draft_node.model,
            self.topology.policy,
            self._drafts.name,
            len(self._desk.requests),
            self.handshake.status(),
            self.admission.context_limit,
            self._desk.queued,
            live=tuple(request.status(time.perf_counter()) for request in self._desk.requests.values()),
            in_flight=self.scheduler.in_flight,
            uptime=counts.uptime,
            tokens=counts.tokens,
            finished=counts.finished,
            failed=counts.failed,
            refused=self._channels.refused,
            draining=self.draining,
        )

    def _figures(self) -> list[Metric]:
        assert self._desk is not None
        assert self._channels is not None
        return coordinator_figures(
            ready=self._watch.ready,
            counts=self._desk.counts,
            sessions=len(self._desk.requests),
            waiting=self._desk.queued,
            in_flight=self.scheduler.in_flight,
            nodes=self.handshake.status(),
            channels=self._channels,
        )

    def _facts(self) -> NodeFacts:
        return facts_of(self.topology, self.name, self.handshake.fingerprint, self.handshake.tokenizer)
