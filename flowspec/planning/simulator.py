"""What a pipe will do: the very schedulers that run it, on a virtual clock. No sockets, no weights, no waiting.

`simulate(pipe, policy)` decodes one or several requests through simulated stages and links, and tells how fast that
was, how busy each stage, and what was computed in vain. The coordinator's side is `Scheduler` itself; a stage is a
queue and a time curve; what the model writes, and how often the drafter is right, is a `Language`. Without overheads
it is what devices and network allow, with software that takes no time at all.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace

from flowspec.errors import InvariantViolation
from flowspec.planning.clock import Channel, Cores, VirtualClock
from flowspec.planning.language import FeatureReader, Guesses, Language
from flowspec.planning.observer import Observer
from flowspec.planning.pipe import NO_OVERHEADS, Overheads, SimulatedPipe
from flowspec.planning.result import SessionResult, SimulationResult
from flowspec.planning.stage import Flight, SimulatedStage
from flowspec.planning.story import Story
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.continuous import ContinuousSettings
from flowspec.schedule.events import (
    Command,
    EmitTokens,
    Event,
    FeaturesArrived,
    FinishSession,
    GrowTree,
    OpenSession,
    SegmentReturned,
    SegmentTaken,
    SendSegment,
    SessionReady,
    SessionRequested,
    StopGrowth,
    TreeGrown,
)
from flowspec.schedule.options import PolicyOptions, read_options
from flowspec.synthetic.guesses import Children

PROMPT = 64
"""Tokens of a prompt, where nothing else is said."""


@dataclass(slots=True)
class _Session:
    """One request on its way, and what came of it."""

    index: int
    name: str
    story: Story
    guesses: Guesses
    verdict: int = 0
    """The newest verdict that the coordinator has heard."""
    unacknowledged: int = 0
    reader: FeatureReader | None = None
    """The drafter, where it reads hidden states."""
    features: int = 0
    """Positions whose hidden states have come for it."""
    learned: int = 0
    """Positions whose hidden states it has read."""
    result: SessionResult = field(default_factory=SessionResult)


class Simulation:
    """One run; `simulate` makes it. Everything that happens is a callback on the clock."""

    def __init__(
        self,
        pipe: SimulatedPipe,
        language: Language,
        *,
        settings: ContinuousSettings | None = None,
        overheads: Overheads = NO_OVERHEADS,
        seed: int = 0,
        observer: Observer | None = None,
        check: bool = False,
    ) -> None:
        self.pipe = pipe
        self.clock = VirtualClock()
        self.scheduler = Scheduler(pipe.profile(), settings)
        self.sessions: list[_Session] = []
        self.draft_busy = 0.0
        self.draft_steps = 0
        self._language = language
        self._overheads = overheads
        self._observer = observer
        self._check = check
        self._names: dict[str, _Session] = {}
        self._live: list[_Session] = []
        self._steps: deque[tuple[float, GrowTree]] = deque()
        self._drafting = False
        self._decided = 0.0
        dice = random.Random(seed)
        last = len(pipe.stages)
        self._cores = Cores(self.clock, pipe.cores) if pipe.cores else None
        self._forward = [Channel(self.clock, link, overheads.message, dice) for link in pipe.links[:last]]
        self._returns = [
            Channel(self.clock, pipe.way_back(index), overheads.message, dice) for index in range(len(pipe.stages))
        ]
        # The tail's broadcasts go the way of its returns, but wait for none of them.
        self._verdicts = Channel(self.clock, pipe.links[last], overheads.message, dice)
        self._hints = Channel(self.clock, pipe.links[0], overheads.message, dice)
        self.stages = [
            SimulatedStage(
                self.clock,
                index,
                time,
                self._passed,
                overhead=overheads.segment,
                cores=self._cores,
                begun=self._taken if index == 0 else None,
                watcher=observer,
            )
            for index, time in enumerate(pipe.stages)
        ]
        if observer is not None:
            observer.attach(self)

    def request(self, asked: SessionRequested, when: float = 0.0) -> None:
        """Ask for a session at that time; its number is the count of those before it."""
        index = len(self.sessions)
        options = asked.options or read_options(asked.policy)
        story = Story(len(asked.prompt) - 1, self._language.target(index), prunes=options.prunes)
        session = _Session(index, asked.session, story, self._language.guesses(index))
        if isinstance(session.guesses, FeatureReader):
            session.reader, asked = session.guesses, replace(asked, features=True)
        session.result.asked = when
        self.sessions.append(session)
        self._names[asked.session] = session
        self.clock.at(when, self._begin, session, asked)

    def run(self) -> None:
        """Until everything has come back. `InvariantViolation` when a session did not end."""
        self.clock.run()
        unfinished = [name for name, session in self._names.items() if session.result.finish is None]
        if unfinished or not self.scheduler.idle:
            raise InvariantViolation(f"the pipe came to rest before its sessions ended: {', '.join(unfinished)}")

    # ---- the coordinator ---------------------------------------------------------------------------------------------

    def _begin(self, session: _Session, asked: SessionRequested) -> None:
        self._live.append(session)
        self._tell(asked)

    def _tell(self, event: Event) -> None:
        """Something happened; the coordinator decides at once, or when it has time."""
        cost = self._overheads.decision
        if cost <= 0.0:
            self._decide(event)
            return
        self._decided = max(self._decided, self.clock.now) + cost
        self.clock.at(self._decided, self._decide, event)

    def _decide(self, event: Event) -> None:
        if self._observer is not None:
            self._observer.happened(event)
        commands = self.scheduler.handle(event)
        if self._check:
            self.scheduler.check_integrity()
        if self._observer is not None:
            self._observer.decided(event, commands)
        for command in commands:
            self._obey(command)

    def _returned(self, event: SegmentReturned, verdict: int) -> None:
        session = self._names[event.session]
        session.verdict = max(session.verdict, verdict)
        self._tell(event)

    def _obey(self, command: Command) -> None:
        match command:
            case SendSegment():
                self._send(command)
            case GrowTree():
                self._steps.append((self.clock.now, command))
                self._draft()
            case EmitTokens():
                self._names[command.session].result.emit(self.clock.now, command)
            case StopGrowth():
                pass  # a simulated step takes its whole time, as an emulated one does
            case FinishSession():
                self._finish(command)
            case OpenSession():
                session = self._names[command.session]
                session.unacknowledged = len(self.stages)
                self._carry(0, Flight(session.index, session.story, 0, 0, (), 0, opens=True))
            case _:
                raise InvariantViolation(f"nothing is ever lost in a simulated pipe, and yet: {command}")

    def _send(self, command: SendSegment) -> None:
        session = self._names[command.session]
        session.story.send(command.draft)
        live = self.scheduler.sessions.get(command.session)
        first = command.draft.serials[0]
        # The prompt's last token, with which a session begins, is counted from the start, whatever it is sent with.
        if live is not None and first > session.story.decree and first == live.tree.root:
            session.result.restarts += 1
        roster = tuple((each.index, each.verdict) for each in self._live)
        self._carry(
            0, Flight(session.index, session.story, command.ticket, command.number, command.draft.serials, 0, roster)
        )

    def _finish(self, command: FinishSession) -> None:
        session = self._names[command.session]
        session.result.finish = command
        self._live.remove(session)
        when = self._hints.arrival(0)
        for stage in self.stages:
            self.clock.at(when, stage.forget, session.index)

    # ---- the drafter -------------------------------------------------------------------------------------------------

    def _draft(self) -> None:
        """Between two steps: the drafter reads what has come of hidden states, and begins with the next."""
        if not self._drafting:
            self._learn()
        # What it has read may have made the scheduler ask, and this step begin, already.
        if self._drafting or not self._steps:
            return
        self._drafting = True
        if self._cores is None:
            self._step()
        else:
            self._cores.take(self._step)

    def _step(self) -> None:
        asked, command = self._steps.popleft()
        children = self._names[command.session].guesses.grow(command, command.width)
        seconds = self.pipe.draft.of(len(command.expand)) + self._overheads.step
        self.draft_busy += seconds
        self.draft_steps += 1
        self.clock.at(self.clock.now + seconds, self._drafted, asked, command, children)

    def _drafted(self, asked: float, command: GrowTree, children: Children) -> None:
        self._drafting = False
        if self._cores is not None:
            self._cores.release()
        if self._observer is not None:
            self._observer.drafted(asked, command, children)
        self._tell(TreeGrown(command.session, command.epoch, children, self.clock.now - asked))
        self._draft()

    def _learn(self) -> None:
        """Reading hidden states takes no time."""
        for session in self._live:
            if session.reader is not None and session.learned < session.features:
                session.learned = session.features
                session.reader.learn(session.learned)
                self._tell(FeaturesArrived(session.name, 0, session.learned))

    def _send_features(self, session: _Session, count: int, news: int) -> None:
        """Every stage sends the hidden states of `news` positions, so that those below `count` are known."""
        arrives = max(channel.arrival(news) for channel in self._returns)
        self.clock.at(arrives, self._features_arrived, session, count)

    def _features_arrived(self, session: _Session, count: int) -> None:
        session.features = max(session.features, count)
        self._draft()

    # ---- the pipe ----------------------------------------------------------------------------------------------------

    def _carry(self, index: int, flight: Flight) -> None:
        """Towards the stage at `index`; token ids weigh nothing, hidden states do."""
        hidden = len(flight.serials) if index else 0
        arrives = self._forward[index].arrival(hidden)
        if self._observer is not None:
            self._observer.carried(index, flight, hidden, arrives)
        self.clock.at(arrives, self.stages[index].receive, flight)

    def _taken(self, flight: Flight) -> None:
        self.clock.at(self._returns[0].arrival(0), self._credited, flight.ticket)

    def _credited(self, ticket: int) -> None:
        self.clock.at(self.clock.now + self.scheduler.hold(ticket), self._tell, SegmentTaken(ticket))

    def _passed(self, index: int, flight: Flight) -> None:
        """A stage is done with a flight."""
        if flight.opens:
            self.clock.at(self._returns[index].arrival(0), self._acknowledged, self.sessions[flight.session])
        if index + 1 < len(self.stages):
            self._carry(index + 1, flight)
        elif not flight.opens:
            self._conclude(flight)

    def _acknowledged(self, session: _Session) -> None:
        session.unacknowledged -= 1
        if session.unacknowledged == 0:
            self._tell(SessionReady(session.name, 0))

    def _conclude(self, flight: Flight) -> None:
        """The tail has computed a segment: the verdict is published, the ticket goes back."""
        story, tail = flight.story, self.stages[-1]
        session, known = self.sessions[flight.session], story.known
        if session.reader is not None and flight.serials and flight.serials[0] <= story.decree:
            prompt = sum(serial <= story.decree for serial in flight.serials)
            self._send_features(session, flight.serials[0] + prompt, prompt)
        if flight.serials and story.compute(flight.serials):
            tail.heard[flight.session] = story.verdict
            heard = self._verdicts.arrival(0)
            for stage in self.stages[:-1]:
                self.clock.at(heard, stage.hear, flight.session, story.verdict)
            if session.reader is not None and story.known > known:
                self.clock.at(heard, self._send_features, session, story.known, story.known - known)
            if self._observer is not None:
                self._observer.judged(flight, heard)
        event = SegmentReturned(flight.ticket, session.name, 0, flight.number, story.frontier, story.token)
        back = self._returns[-1].arrival(0)
        if self._observer is not None:
            self._observer.carried(len(self.stages), flight, 0, back)
        self.clock.at(back, self._returned, event, story.verdict)


def simulate(
    pipe: SimulatedPipe,
    policy: str = "flowspec",
    options: PolicyOptions | None = None,
    *,
    language: Language,
    tokens: int = 256,
    sessions: int = 1,
    prompt: int = PROMPT,
    overheads: Overheads = NO_OVERHEADS,
    settings: ContinuousSettings | None = None,
    seed: int = 0,
    trace: bool = False,
    check: bool = False,
) -> SimulationResult:
    """Decode `tokens` tokens in each of `sessions` sessions that begin together, behind `prompt` tokens each.

    A language may have prompts of its own, and fewer tokens. `check` holds the scheduler's books
    to account after every event.
    """
    observer = Observer() if trace else None
    run = Simulation(
        pipe,
        language,
        settings=settings,
        overheads=overheads,
        seed=seed,
        observer=observer,
        check=check,
    )
    for number in range(sessions):
        chain, count, recalls = tuple(range(prompt)), tokens, False
        opening = language.opening(number)
        if opening is not None:
            chain, count, recalls = opening.prompt, min(tokens, opening.length), opening.recalls
        name = f"session-{number + 1}"
        run.request(SessionRequested(name, chain, policy, count, frozenset(), recalls=recalls, options=options))
    run.run()
    return SimulationResult.of(
        tuple(session.result for session in run.sessions),
        busy=tuple(stage.busy for stage in run.stages),
        computed=tuple(stage.computed for stage in run.stages),
        draft_busy=run.draft_busy,
        draft_steps=run.draft_steps,
        trace=observer.trace(policy) if observer is not None else None,
    )
