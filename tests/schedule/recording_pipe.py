"""A `FakePipe` that keeps what was sent and what each stage computed of it."""

from __future__ import annotations

from dataclasses import dataclass

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import Command, GrowTree, PipeProfile, SendSegment, SessionRequested
from flowspec.schedule.options import read_options
from flowspec.wire.messages import NO_PARENT, RosterEntry
from tests.schedule.fake_pipe import Drafter, FakePipe, Stage, Target, Timing

TEN_RANKS = (
    (0.90, 0.05, 0.02, 0.01, 0.004, 0.003, 0.002, 0.001, 0.001, 0.001),
    (0.40, 0.20, 0.10, 0.06, 0.04, 0.03, 0.02, 0.015, 0.01, 0.01),
)
"""Chances of the drafter's ranks, half of the paths each."""

PROMPT = tuple(range(40))


@dataclass(frozen=True)
class Sent:
    """A segment behind the prompt. `depths` are positions in the sequence."""

    time: float
    serials: tuple[int, ...]
    depths: tuple[int, ...]
    in_flight: int
    """Segments of the session in flight, this one included."""


@dataclass(frozen=True)
class Asked:
    """A step of the drafter, with what the session had under way at that moment."""

    time: float
    expand: tuple[int, ...]
    width: int
    root: int
    in_flight: int
    live: int


class CountingStage(Stage):
    """Counts the tokens that it began with, and those of which it was spared the rest."""

    computed = 0
    abandoned = 0

    def begin(self) -> None:
        super().begin()
        assert self.running is not None
        self.computed += len(self.running[1])

    def hear(self, session: str, epoch: int, frontier: int, token: int) -> None:
        before = len(self.running[1]) if self.running is not None else 0
        super().hear(session, epoch, frontier, token)
        self.abandoned += before - (len(self.running[1]) if self.running is not None else 0)


class RecordingPipe(FakePipe):
    """One session `s`."""

    stage_type = CountingStage

    def __init__(self, scheduler: Scheduler, timing: Timing, target: Target, drafter: Drafter) -> None:
        super().__init__(scheduler, timing, target=target, drafter=drafter)
        self.sent: list[Sent] = []
        self.asked: list[Asked] = []
        self.tokens_sent = 0
        self._depth = {NO_PARENT: -1}

    def obey(self, command: Command, roster: tuple[RosterEntry, ...]) -> None:
        session = self.scheduler.sessions.get("s")
        flights = len(session.flights) if session is not None else 0
        if isinstance(command, SendSegment):
            draft = command.draft
            self.tokens_sent += len(draft)
            for serial, parent in zip(draft.serials, draft.parents, strict=True):
                self._depth[serial] = self._depth[parent] + 1
            if draft.serials[0] > command.decree:
                depths = tuple(self._depth[serial] for serial in draft.serials)
                self.sent.append(Sent(self.now, draft.serials, depths, flights))
        elif isinstance(command, GrowTree) and session is not None:
            live = session.tree.sent
            self.asked.append(Asked(self.now, command.expand, command.width, session.tree.root, flights, live))
        super().obey(command, roster)


def stage_seconds(tokens: int) -> float:
    return 0.06 + 0.0006 * (tokens - 1)


def run(
    policy: str,
    *options: tuple[str, str],
    tokens: int = 120,
    ranks: tuple[tuple[float, ...], ...] = TEN_RANKS,
    stages: int = 4,
    link: float = 0.009,
    salt: int = 3,
    drafter: bool = True,
    checks: bool = True,
) -> RecordingPipe:
    """One request on a pipe of `stages` stages of 60 ms and 0.6 ms a token, a step of the drafter takes 10 ms.

    `checks`: look at the books after every event, which takes most of the time.
    """
    curve = tuple((count, stage_seconds(count)) for count in (1, 2, 4, 8, 16, 32, 64, 128))
    scheduler = Scheduler(PipeProfile((curve,) * stages, (link,) * (stages + 1)))
    timing = Timing((stage_seconds,) * stages, link=link, message=0.002, draft=lambda tokens: 0.01, layers=8)
    target = Target(salt)
    pipe = RecordingPipe(scheduler, timing, target, Drafter(target, ranks))
    pipe.checks = checks
    request = SessionRequested(
        "s", PROMPT, policy, tokens, frozenset(), drafter=drafter, options=read_options(policy, options)
    )
    pipe.request(request)
    assert pipe.run()["s"].tokens == target.decode(PROMPT, tokens)
    return pipe
