"""The coordinator's desk for clients with the scheduler behind it, and a pipe that is not there: for `fuzz`.

Clients ask, cancel and ask again with names that they have used, of sessions and requests that are not theirs; the pipe
answers with tickets, epochs and verdicts that may be forged, doubled or of long ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from flowspec.bench.mutations import Mutator
from flowspec.demo import MODEL_DIR
from flowspec.errors import FlowspecError, InvariantViolation, error_named
from flowspec.model.weights import Checkpoint
from flowspec.roles.admission import Admission
from flowspec.roles.front_desk import FrontDesk
from flowspec.roles.request import Admitted
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import (
    BreakSession,
    EmitTokens,
    Event,
    FinishSession,
    OpenSession,
    SegmentReturned,
    SegmentTaken,
    SendSegment,
    SessionReady,
)
from flowspec.schedule.options import OPTIONS, known_options
from flowspec.schedule.policies import POLICIES
from flowspec.topology import Topology
from flowspec.transport.base import ChannelStatistics
from flowspec.wire.frames import Envelope, decode, encode
from flowspec.wire.messages import Cancel, Diagnose, Failed, Generate, Message, PolicyOption, Status, StatusQuery

ASKED: list[type[Message]] = [Generate, Generate, Generate, Cancel, Cancel, StatusQuery, Diagnose, Status]
PEERS = (b"\0one", b"\0two", b"\0three")
OPTION_TEXTS = ("1", "2", "5", "64", "0", "-1", "true", "false", "1e3", "")
MOST_REMEMBERED = 200
"""Returns that may be sent again."""


class _Mute:
    """Clients that hear everything and say nothing by themselves."""

    async def receive(self) -> tuple[bytes, Envelope]:
        raise NotImplementedError

    async def send(self, peer: bytes, message: Message) -> bool:
        return True

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, 0, 0, 0, 0)


class FuzzedDesk:
    def __init__(self, mutator: Mutator) -> None:
        self._mutator = mutator
        self._random = mutator.random
        self._topology = Topology.local(limits={"sessions": 4, "waiting": 4, "context": 256, "max_new_tokens": 64})
        self._admission = Admission(self._topology, Checkpoint(MODEL_DIR))
        self.renew()

    def renew(self) -> None:
        """Begin with no client, no session and an empty pipe."""
        self._scheduler = Scheduler()
        self._sent: list[SendSegment] = []
        self._told: list[Event] = []
        limits = self._topology.limits
        self._desk = FrontDesk(
            self._admission,
            _Mute(),
            sessions=limits.sessions,
            waiting=limits.waiting,
            apply=self._apply,
            check_open=lambda: None,
            begin=_no_drafter,
            end=lambda session: None,
            status=self._status,
            soon=asyncio.get_running_loop().call_soon,
        )

    def fuzz(self, try_one: Callable[..., None], count: int) -> Iterator[None]:
        """One input a step."""
        for number in range(count):
            self.step(try_one, pipe=number % 4 == 3)
            yield

    def step(self, try_one: Callable[..., None], *, pipe: bool) -> None:
        """Let the pipe say something, or a client."""
        if pipe:
            event = self._pipe_says()
            try_one("pipe", FlowspecError, lambda: self._hear(event), event)
        else:
            message, peer = self._client_says(), self._random.choice(PEERS)
            try_one("clients", FlowspecError, lambda: self._ask(peer, message), message)

    def end(self) -> None:
        """Stop whatever lives; raises `InvariantViolation` if something stays behind."""
        self._desk.fail_all(FlowspecError("the end"))
        self.settle()
        if self._desk.requests or self._desk.queued or self._scheduler.sessions:
            raise InvariantViolation("requests or sessions that outlive their end")

    def settle(self) -> None:
        """Take what is due to clients, as fast ones would."""
        while not self._desk._outbox.empty():
            self._desk._outbox.get_nowait()

    def _client_says(self) -> Message:
        message = self._mutator.message(ASKED)
        way = self._random.random()
        if not isinstance(message, Generate) or way < 0.1:
            return message
        plausible = self._plausible(message.request)
        if way < 0.6:
            return plausible
        odd = self._random.choice([each.name for each in fields(Generate)])
        return replace(plausible, **{odd: getattr(message, odd)})

    def _plausible(self, request: str) -> Generate:
        """One that may be admitted."""
        draw = self._random
        policy = draw.choice((None, None, *POLICIES))
        options = list(known_options(OPTIONS[policy or self._topology.policy]))
        given = (
            [PolicyOption(draw.choice(options), draw.choice(OPTION_TEXTS))] if options and draw.random() < 0.3 else []
        )
        seed = draw.choice((None, 1))
        return Generate(
            request=request,
            prompt=None,
            prompt_token_ids=tuple(draw.randrange(200) for _ in range(draw.randrange(1, 20))),
            chat=False,
            max_new_tokens=draw.choice((None, 1, 5, 64)),
            temperature=draw.choice((None, 0.0, 1.0)),
            top_k=None,
            top_p=None,
            min_p=None,
            repetition_penalty=None,
            seed=seed,
            stop=draw.choice(((), (), ("a",))),
            ignore_eos=draw.random() < 0.5,
            policy=policy,
            policy_options=tuple(given),
            resume=(1, 2, 3) if seed and draw.random() < 0.2 else (),
        )

    def _ask(self, peer: bytes, message: Message) -> None:
        """What the desk does with a message that arrived; it answers refusals itself, so nothing may be raised."""
        arrived = decode([bytes(frame) for frame in encode(message)]).message
        if isinstance(arrived, Generate):
            self.settle()
            self._desk._on_generate(peer, arrived)
            self._read_prompts()
            self._raise_refusal()
        elif isinstance(arrived, Cancel):
            self._desk._cancel(peer, arrived.request)
        self._scheduler.check_integrity()

    def _read_prompts(self) -> None:
        """What the desk's thread does."""
        while (unread := self._desk.reading.begin()) is not None:
            try:
                self._desk.prompt_read(unread, self._admission.read(unread.asked))
            except FlowspecError as error:
                self._desk.prompt_read(unread, error)

    def _raise_refusal(self) -> None:
        """Raise what the client hears, if that is an error."""
        outbox = self._desk._outbox
        due = [outbox.get_nowait()[1] for _ in range(outbox.qsize())]
        for message in due:
            if isinstance(message, Failed):
                raise error_named(message.error, message.message)

    def _pipe_says(self) -> Event:
        """The tail's answer to something that was sent, or one to nothing, of another epoch, or for the second time."""
        draw = self._random
        if self._told and draw.random() < 0.3:
            return draw.choice(self._told)
        sent = self._sent.pop(0) if self._sent and draw.random() < 0.7 else None
        if sent is None:
            sessions = [*self._desk.requests, "forged", ""]
            numbers = [self._mutator.value(int) for _ in range(4)]
            event: Event = draw.choice(
                (
                    SegmentReturned(numbers[0], draw.choice(sessions), numbers[1], numbers[2], numbers[3], 7),
                    SegmentReturned(numbers[0], draw.choice(sessions), 0, 0, None, None),
                    SegmentTaken(numbers[0]),
                    SessionReady(draw.choice(sessions), numbers[1]),
                )
            )
        else:
            frontier = sent.draft.serials[-1] if sent.draft.serials else None
            token = None if frontier is None else draw.randrange(200)
            event = SegmentReturned(sent.ticket, sent.session, sent.epoch, sent.number, frontier, token)
        self._told = [*self._told[-MOST_REMEMBERED:], event]
        return event

    def _hear(self, event: Event) -> None:
        self._apply(event)
        self._scheduler.check_integrity()

    def _apply(self, event: Event) -> None:
        for command in self._scheduler.handle(event):
            match command:
                case SendSegment():
                    self._sent.append(command)
                case OpenSession(session, epoch):
                    self._told.append(SessionReady(session, epoch))
                    self._apply(SessionReady(session, epoch))
                case EmitTokens():
                    self._desk.emit(command)
                case FinishSession():
                    self._desk.finish(command)
                case BreakSession(session):
                    self._desk.fail(session, FlowspecError("broken"))
        del self._sent[:-64]

    def _status(self, request: str) -> Status:
        return Status(request, True, "demo", "flowspec", "none", len(self._desk.requests), (), 256)


def _no_drafter(admitted: Admitted, session: str) -> tuple[int, ...] | None:
    return None
