"""A pipe without sockets, threads or torch: stages, links, tail and drafter on a virtual clock.

Drives a real `Scheduler` and checks, like a strict peer, everything that the stages and the drafter rely on. The target
model is a function of the path; so is the drafter's opinion of it. Delays are given as curves (to measure a schedule)
or drawn at random (to reach every interleaving that ordered channels allow).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import log

from flowspec.schedule.arbiter import Scheduler
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
from flowspec.schedule.options import OPTIONS
from flowspec.wire.messages import NO_PARENT, DraftTokens, RosterEntry

VOCABULARY = 50_000


def mix(*values: int) -> int:
    """A deterministic 64-bit hash."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value + 0x632BE59BD9B4E019)) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 29
    state = state * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def digest_of(tokens: tuple[int, ...]) -> int:
    digest = 0
    for token in tokens:
        digest = mix(digest, token)
    return digest


def chance(digest: int, salt: int) -> float:
    return mix(digest, salt) / 2**64


class Target:
    """The model: the next token is a function of the path alone."""

    def __init__(self, salt: int = 1, vocabulary: int = VOCABULARY) -> None:
        self.salt = salt
        self.vocabulary = vocabulary

    def next(self, digest: int) -> int:
        return mix(digest, self.salt) % self.vocabulary

    def decode(self, prompt: tuple[int, ...], limit: int, eos: frozenset[int] = frozenset()) -> list[int]:
        digest = digest_of(prompt)
        output: list[int] = []
        while len(output) < limit and not (output and output[-1] in eos):
            output.append(self.next(digest))
            digest = mix(digest, output[-1])
        return output


EASY_AND_HARD = ((0.90, 0.05, 0.02, 0.01), (0.40, 0.20, 0.10, 0.06))
"""Chances of the drafter's ranks, half of the paths each: 65 % for the first, 87 % for the first four."""


class Drafter:
    """Knows the target up to luck: rank r is the target's token with probability `ranks[kind][r]`."""

    def __init__(self, target: Target, ranks: tuple[tuple[float, ...], ...] = EASY_AND_HARD, salt: int = 7) -> None:
        self.target = target
        self.ranks = ranks
        self.salt = salt

    def children(self, digest: int) -> tuple[tuple[int, float], ...]:
        chances = self.ranks[mix(digest, self.salt, 1) % len(self.ranks)]
        luck = chance(digest, self.salt + 2)
        found: list[tuple[int, float]] = []
        for rank, probability in enumerate(chances):
            right = 0.0 <= luck < probability
            luck -= probability
            token = self.target.next(digest) if right else mix(digest, self.salt, 3, rank) % self.target.vocabulary
            if all(token != other for other, _ in found):
                found.append((token, log(probability)))
        return tuple(found)


class HeadLikeDrafter(Drafter):
    """One that reads features: the farther a token is from the last position with features, the worse its guesses."""

    def __init__(
        self, target: Target, ranks: tuple[tuple[float, ...], ...] = EASY_AND_HARD, decay: float = 0.85
    ) -> None:
        super().__init__(target, ranks)
        self.decay = decay

    def children_from(self, digest: int, distance: int) -> tuple[tuple[int, float], ...]:
        share = self.decay ** max(0, distance - 1)
        faded = Drafter(
            self.target, tuple(tuple(share * chance for chance in ranks) for ranks in self.ranks), self.salt
        )
        return faded.children(digest)


@dataclass(slots=True)
class Row:
    parent: int
    token: int
    digest: int


class Cache:
    """What a stage (or the drafter) knows of one session: the live rows, and where the accepted prefix ends."""

    def __init__(self, epoch: int, *, prunes: bool = True) -> None:
        self.epoch = epoch
        self.prunes = prunes
        """False: it applies the verdicts that came with its session's segments, no other."""
        self.verdict: tuple[int, int] | None = None
        """At the tail: how far it has sampled."""
        self.rows: dict[int, Row] = {}
        self.frontier: tuple[int, int] | None = None
        self.accepted = 0

    def apply(self, frontier: int | None, token: int | None) -> None:
        if frontier is None or token is None or frontier not in self.rows:
            return
        if self.frontier is not None and frontier <= self.frontier[0]:
            return
        path, serial = 0, frontier
        while serial in self.rows:
            path += 1
            serial = self.rows[serial].parent
        self.accepted += path - (1 if self.frontier is not None else 0)
        kept = {frontier: self.rows[frontier]}
        for serial, row in self.rows.items():
            if row.parent in kept and (row.parent != frontier or row.token == token):
                kept[serial] = row
        self.rows = kept
        self.frontier = (frontier, token)

    def position(self, serial: int) -> int:
        """In the sequence, as far as verdicts were applied here."""
        depth, start = 0, self.frontier[0] if self.frontier is not None else NO_PARENT
        while serial != start and serial in self.rows:
            depth, serial = depth + 1, self.rows[serial].parent
        return max(0, self.accepted - 1) + depth if self.frontier is not None else depth - 1

    def append(self, draft: DraftTokens) -> list[int]:
        """Add what is alive; return the serials added."""
        added = []
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            if serial in self.rows:
                continue
            if parent == NO_PARENT:
                digest = 0
            elif parent not in self.rows or self._contradicts(parent, token):
                continue
            else:
                digest = self.rows[parent].digest
            self.rows[serial] = Row(parent, token, mix(digest, token))
            added.append(serial)
        return added

    def _contradicts(self, parent: int, token: int) -> bool:
        return self.frontier is not None and parent == self.frontier[0] and token != self.frontier[1]

    def living(self, draft: DraftTokens) -> DraftTokens:
        return draft.select([i for i, serial in enumerate(draft.serials) if serial in self.rows])


@dataclass
class Machine:
    """Cores shared by some of the pipe's workers: at most that many compute at once."""

    cores: int
    computing: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)


@dataclass
class Flight:
    command: SendSegment
    roster: tuple[RosterEntry, ...]
    draft: DraftTokens


@dataclass
class Timing:
    """Seconds, as functions of the number of tokens; `jitter` multiplies every delay by a random factor."""

    stages: tuple[Callable[[int], float], ...]
    link: float = 0.0
    message: float = 0.0
    draft: Callable[[int], float] = lambda tokens: 0.001
    layers: int = 1
    cores: int | None = None
    """Cores shared by all stages and the drafter; None: each has its own."""
    jitter: Callable[[random.Random], float] = lambda dice: 1.0
    features: float | None = None
    """From a verdict to the arrival of the features of what it accepted; None: they never come."""
    credit_lead: float | None = None
    """Credit leaves this long before stage 1 is expected to be done; None: when it begins."""


class Stage:
    def __init__(self, pipe: FakePipe, index: int) -> None:
        self.pipe = pipe
        self.index = index
        self.queue: deque[Flight | OpenSession] = deque()
        self.caches: dict[str, Cache] = {}
        self.running: tuple[Flight, list[int], float, float] | None = None
        self.version = 0
        self.busy = 0.0
        self.wants_core = False

    def receive(self, item: Flight | OpenSession) -> None:
        self.queue.append(item)
        self.start()

    def start(self) -> None:
        while self.running is None and not self.wants_core and self.queue and isinstance(self.queue[0], OpenSession):
            opened = self.queue.popleft()
            assert isinstance(opened, OpenSession)
            self.caches[opened.session] = Cache(opened.epoch, prunes=self.pipe.prunes[opened.session])
            self.pipe.pass_on(self.index, opened)
        if self.running is None and self.queue and not self.wants_core:
            self.wants_core = True
            self.pipe.compute(self.begin)

    def begin(self) -> None:
        self.wants_core = False
        flight = self.queue.popleft()
        assert isinstance(flight, Flight)
        for entry in flight.roster:
            cache = self.caches.get(entry.session)
            heeded = cache is not None and (cache.prunes or entry.session == flight.command.session)
            if cache is not None and heeded and cache.epoch == entry.epoch:
                cache.apply(entry.frontier, entry.token)
        live = {entry.session for entry in flight.roster}
        for absent in [name for name in self.caches if name not in live]:
            del self.caches[absent]
        cache = self.caches.get(flight.command.session)
        alive = cache.append(flight.draft) if cache is not None and cache.epoch == flight.command.epoch else []
        if cache is not None:
            self.pipe.check_rows(cache, flight)
        flight.draft = flight.draft.select([i for i, s in enumerate(flight.draft.serials) if s in set(alive)])
        seconds = self.pipe.timing.stages[self.index](len(alive)) * self.pipe.factor() if alive else 0.0
        now = self.pipe.now
        self.running = (flight, alive, now, now + seconds)
        if self.index == 0:
            lead = self.pipe.timing.credit_lead
            delay = 0.0 if lead is None else max(0.0, seconds - lead)
            self.pipe.at(now + delay, lambda: self.pipe.return_taken(flight.command.ticket))
        self.finish_at(now + seconds)

    def finish_at(self, when: float) -> None:
        self.version += 1
        version = self.version
        self.pipe.at(when, lambda: self.finish() if version == self.version else None)

    def hear(self, session: str, epoch: int, frontier: int, token: int) -> None:
        cache = self.caches.get(session)
        if cache is None or cache.epoch != epoch or not cache.prunes:
            return
        cache.apply(frontier, token)
        if self.running and self.running[0].command.session == session and self.running[1]:
            flight, alive, began, ends = self.running
            if not any(serial in cache.rows for serial in alive) and ends > self.pipe.now:
                layer = (ends - began) / self.pipe.timing.layers
                done = -(-(self.pipe.now - began) // layer) * layer + began
                self.running = (flight, [], began, ends)
                self.finish_at(min(ends, max(self.pipe.now, done)))

    def finish(self) -> None:
        assert self.running is not None
        flight, alive, began, _ = self.running
        self.busy += self.pipe.now - began
        self.running = None
        self.pipe.release()
        cache = self.caches.get(flight.command.session)
        flight.draft = cache.living(flight.draft) if cache is not None and alive else DraftTokens()
        if self.index + 1 < len(self.pipe.stages):
            self.pipe.carry(self.index + 1, flight)
        else:
            self.verify(flight, cache)
        self.start()

    def verify(self, flight: Flight, cache: Cache | None) -> None:
        verdict = None
        if cache is not None and cache.epoch == flight.command.epoch:
            before = verdict = cache.verdict
            if before is None and flight.command.decree in cache.rows:
                decree = flight.command.decree
                verdict = (decree, self.pipe.target.next(cache.rows[decree].digest))
            while verdict is not None:
                frontier, token = verdict
                child = next((s for s, r in cache.rows.items() if r.parent == frontier and r.token == token), None)
                if child is None:
                    break
                verdict = (child, self.pipe.target.next(cache.rows[child].digest))
            cache.verdict = verdict
            if verdict is not None and verdict != before:
                if self.pipe.timing.features is not None:
                    self.pipe.send_features(flight.command.session, cache.epoch, cache.position(verdict[0]) + 1)
                if cache.prunes:
                    cache.apply(*verdict)
                self.pipe.broadcast(flight.command.session, flight.command.epoch, *verdict)
        self.pipe.return_segment(flight, verdict)


@dataclass
class Result:
    tokens: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finished: FinishSession | None = None

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.tokens) - 1) / (self.times[-1] - self.times[0])


class FakePipe:
    """Runs a `Scheduler` against fake stages until nothing is left to happen."""

    stage_type: type[Stage] = Stage

    def __init__(
        self,
        scheduler: Scheduler,
        timing: Timing,
        *,
        target: Target | None = None,
        drafter: Drafter | None = None,
        verdict_loss: float = 0.0,
        seed: int = 0,
        checks: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.timing = timing
        self.target = target or Target()
        self.drafter = drafter or Drafter(self.target)
        self.verdict_loss = verdict_loss
        self.dice = random.Random(seed)
        self.checks = checks
        self.now = 0.0
        self.results: dict[str, Result] = {}
        self.stages = [self.stage_type(self, index) for index in range(len(timing.stages))]
        self.machine = Machine(timing.cores) if timing.cores else None
        self.given: dict[str, Cache] = {}
        self.prunes: dict[str, bool] = {}
        self.most_live: dict[str, int] = {}
        self.growing: dict[tuple[str, int], GrowTree] = {}
        self.stopping: set[tuple[str, int]] = set()
        self.draft_busy = 0.0
        self.steps = 0
        self.draft_steps = 0
        self.redrafted = 0
        """Tokens that were expanded again."""
        self._drafting = False
        self._drafts: deque[tuple[float, GrowTree | FeaturesArrived]] = deque()
        self.features: dict[str, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._arrivals: dict[str, float] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._ticket = 0

    # ---- clock -------------------------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def in_order(self, channel: str, delay: float, action: Callable[[], None]) -> None:
        """Deliver over a channel that keeps its order."""
        when = max(self.now + delay * self.factor(), self._arrivals.get(channel, 0.0))
        self._arrivals[channel] = when
        self.at(when, action)

    def factor(self) -> float:
        return self.timing.jitter(self.dice)

    def request(self, request: SessionRequested, when: float = 0.0) -> None:
        self.results[request.session] = Result()
        options = request.options or OPTIONS[request.policy]()
        self.prunes[request.session] = options.prunes
        self.most_live[request.session] = options.live_tokens
        if request.options is None and request.policy == "flowspec":
            self.most_live[request.session] = self.scheduler.settings.tree
        self.at(when, lambda: self.tell(request))

    def run(self, most_steps: int = 200_000) -> dict[str, Result]:
        while self._events:
            self.steps += 1
            assert self.steps < most_steps, "livelock"
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.results

    # ---- cores -------------------------------------------------------------------------------------------------------

    def compute(self, begin: Callable[[], None]) -> None:
        if self.machine is None:
            begin()
        elif self.machine.computing < self.machine.cores:
            self.machine.computing += 1
            begin()
        else:
            self.machine.waiting.append(begin)

    def release(self) -> None:
        if self.machine is None:
            return
        if self.machine.waiting:
            self.at(self.now, self.machine.waiting.popleft())
        else:
            self.machine.computing -= 1

    # ---- coordinator -------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        if self.checks:
            self.scheduler.check_integrity()
        roster = self.scheduler.roster()
        for command in commands:
            self.obey(command, roster)

    def obey(self, command: Command, roster: tuple[RosterEntry, ...]) -> None:
        match command:
            case OpenSession():
                self.carry(0, command)
            case SendSegment():
                self.check_segment(command, roster)
                self.carry(0, Flight(command, roster, command.draft))
            case GrowTree():
                self.check_growth(command)
                self._drafts.append((self.now, command))
                self.draft()
            case StopGrowth():
                self.check_stop(command)
            case EmitTokens():
                result = self.results[command.session]
                assert result.finished is None, "emitted after the end"
                assert command.tokens, "emitted nothing"
                result.tokens += command.tokens
                result.drafted += command.drafted
                result.times += [self.now] * len(command.tokens)
            case FinishSession():
                assert self.results[command.session].finished is None, "finished twice"
                self.results[command.session].finished = command
            case _:
                raise AssertionError(f"unknown command {command}")

    def check_segment(self, command: SendSegment, roster: tuple[RosterEntry, ...]) -> None:
        self._ticket += 1
        assert command.ticket == self._ticket, "tickets have a gap"
        key = (command.session, command.epoch)
        assert command.number == self._numbers.get(key, 0), "numbers have a gap"
        self._numbers[key] = command.number + 1
        assert len(command.draft) > 0, "an empty segment"
        assert any(entry.session == command.session and entry.epoch == command.epoch for entry in roster)

    def check_rows(self, cache: Cache, flight: Flight) -> None:
        if self.checks and cache.frontier is not None:
            assert len(cache.rows) - 1 <= self.most_live[flight.command.session], "more live rows than promised"

    def check_growth(self, command: GrowTree) -> None:
        key = (command.session, command.epoch)
        assert key not in self.growing, "two growths at once"
        self.growing[key] = command
        cache = self.given.get(command.session)
        if cache is None or cache.epoch != command.epoch:
            cache = self.given[command.session] = Cache(command.epoch)
        cache.apply(command.frontier, command.token)
        known = set(cache.rows)
        assert not known & set(command.draft.serials), "given twice"
        added = cache.append(command.draft)
        assert added == list(command.draft.serials), "the drafter was given what it must find dead or unfounded"
        assert command.expand, "nothing to expand"
        assert set(command.expand) <= set(cache.rows), "expansion of what was never given"

    def check_stop(self, command: StopGrowth) -> None:
        key = (command.session, command.epoch)
        assert key in self.growing, "no growth to stop"
        assert key not in self.stopping, "stopped twice"
        session = self.scheduler.sessions.get(command.session)
        expanded = self.growing[key].expand
        assert session is None or not any(map(session.tree.get, expanded)), "what is expanded is still of use"
        self.stopping.add(key)

    # ---- drafter -----------------------------------------------------------------------------------------------------

    def draft(self) -> None:
        if not self._drafting and self._drafts:
            self._drafting = True
            self.compute(self.begin_draft)

    def begin_draft(self) -> None:
        asked, command = self._drafts.popleft()
        if isinstance(command, FeaturesArrived):
            self.features[command.session] = command.count
            self._drafting = False
            self.release()
            self.tell(command)
            self.draft()
            return
        cache = self.given[command.session]
        guessed = [(s, self.guess(command.session, cache, s)) for s in command.expand if s in cache.rows]
        children = tuple((s, guesses[: command.width]) for s, guesses in guessed)
        again = len(set(command.expand) - set(command.draft.serials))
        self.redrafted += again
        seconds = self.timing.draft(len(command.draft) + again) * self.factor()
        self.draft_busy += seconds
        self.draft_steps += 1

        def done() -> None:
            self._drafting = False
            self.release()
            key = (command.session, command.epoch)
            self.growing.pop(key, None)
            stopped = key in self.stopping
            self.stopping.discard(key)
            found = () if stopped else children
            self.tell(TreeGrown(command.session, command.epoch, found, self.now - asked, stopped))
            self.draft()

        self.at(self.now + seconds, done)

    def guess(self, session: str, cache: Cache, serial: int) -> tuple[tuple[int, float], ...]:
        digest = cache.rows[serial].digest
        if not isinstance(self.drafter, HeadLikeDrafter):
            return self.drafter.children(digest)
        return self.drafter.children_from(digest, cache.position(serial) - self.features.get(session, 0))

    def send_features(self, session: str, epoch: int, count: int) -> None:
        """All positions below `count`; given to the drafter's thread in order with its steps."""

        def arrive() -> None:
            self._drafts.append((self.now, FeaturesArrived(session, epoch, count)))
            self.draft()

        assert self.timing.features is not None
        self.in_order("features", self.timing.features, arrive)

    # ---- channels ----------------------------------------------------------------------------------------------------

    def carry(self, index: int, item: Flight | OpenSession) -> None:
        stage = self.stages[index]
        self.in_order(f"forward {index}", self.timing.link, lambda: stage.receive(item))

    def pass_on(self, index: int, opened: OpenSession) -> None:
        if index + 1 < len(self.stages):
            self.carry(index + 1, opened)
        else:
            ready = SessionReady(opened.session, opened.epoch)
            self.in_order("return tail", self.timing.message, lambda: self.tell(ready))

    def broadcast(self, session: str, epoch: int, frontier: int, token: int) -> None:
        for stage in self.stages[:-1]:
            if self.dice.random() >= self.verdict_loss:
                delay = self.timing.message * self.factor()
                self.at(self.now + delay, partial(stage.hear, session, epoch, frontier, token))

    def return_taken(self, ticket: int) -> None:
        self.in_order("return 0", self.timing.message, lambda: self.tell(SegmentTaken(ticket)))

    def return_segment(self, flight: Flight, verdict: tuple[int, int] | None) -> None:
        command, (frontier, token) = flight.command, verdict or (None, None)
        event = SegmentReturned(command.ticket, command.session, command.epoch, command.number, frontier, token)
        self.in_order("return tail", self.timing.message, lambda: self.tell(event))
