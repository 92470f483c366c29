"""A stage on a virtual clock: a queue, one forward at a time, pruned by verdicts, abandoned when all of it is dead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from flowspec.planning.clock import Cores, VirtualClock
from flowspec.planning.pipe import MOST_TOKENS, StageTime
from flowspec.planning.story import NEVER, Story


@dataclass(slots=True)
class Flight:
    """A segment on its way, or (without tokens of any kind, `opens`) the news of a session."""

    session: int
    story: Story
    ticket: int
    number: int
    serials: Sequence[int]
    """Alive, as far as the stages so far have heard."""
    verdict: int
    """The newest verdict by which `serials` were pruned."""
    roster: tuple[tuple[int, int], ...] = ()
    """Per live session the newest verdict that the coordinator had heard when the segment left."""
    opens: bool = False

    def prune(self, verdict: int) -> None:
        if verdict > self.verdict:
            self.verdict = verdict
            if self.serials:
                self.serials = self.story.alive(self.serials, verdict)


class Watcher(Protocol):
    """Is told what happens at the stages, for a trace."""

    def arrived(self, stage: int, flight: Flight) -> None: ...

    def begun(self, stage: int, flight: Flight, tokens: int) -> None: ...

    def done(self, stage: int, flight: Flight, began: float, tokens: int, computed: int) -> None:
        """`tokens` arrived, `computed` of them went through the layers, or began to."""
        ...


class SimulatedStage:
    """`passed(index, flight)` is called when the stage is done with a flight."""

    def __init__(
        self,
        clock: VirtualClock,
        index: int,
        time: StageTime,
        passed: Callable[[int, Flight], None],
        *,
        overhead: float = 0.0,
        cores: Cores | None = None,
        begun: Callable[[Flight], None] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.busy = 0.0
        """Seconds for which it has computed."""
        self.computed = 0
        """Tokens beyond prompts that it has computed, or begun to."""
        self.heard: dict[int, int] = {}
        """Per session the newest verdict."""
        self._clock = clock
        self._index = index
        self._layers = time.layers
        self._seconds = [time.of(tokens) for tokens in range(MOST_TOKENS + 1)]
        self._time = time
        self._passed = passed
        self._overhead = overhead
        self._cores = cores
        self._begun = begun
        self._watcher = watcher
        self._queue: deque[Flight] = deque()
        self._running: Flight | None = None
        self._wants_core = False
        self._began = self._ends = 0.0
        self._tokens = 0
        self._computing = 0
        self._plan = 0
        """Counts the times at which the running forward was expected to end; only the newest holds."""

    def receive(self, flight: Flight) -> None:
        """A flight has arrived; what its roster tells is heard at once, whatever is being computed."""
        for session, verdict in flight.roster:
            if verdict > self.heard.get(session, 0):
                self.hear(session, verdict)
        if self._watcher is not None:
            self._watcher.arrived(self._index, flight)
        self._queue.append(flight)
        self._start()

    def hear(self, session: int, verdict: int) -> None:
        """A verdict; a forward that is dead by it ends with its present layer."""
        if verdict <= self.heard.get(session, 0):
            return
        self.heard[session] = verdict
        running = self._running
        if running is None or running.session != session or not self._computing:
            return
        running.prune(verdict)
        if not running.serials:
            layer = (self._ends - self._began) / self._layers
            done = self._began + ceil((self._clock.now - self._began) / layer) * layer if layer else self._clock.now
            self._finish_at(max(self._clock.now, min(self._ends, done)))

    def _start(self) -> None:
        if self._running is not None or self._wants_core:
            return
        if self._cores is None:
            while self._queue and self._running is None:
                self._begin()
        else:
            while self._queue and self._queue[0].opens:
                self._passed(self._index, self._queue.popleft())
            if self._queue:
                self._wants_core = True
                self._cores.take(self._begin_on_core)

    def _begin_on_core(self) -> None:
        self._wants_core = False
        self._begin()
        if self._running is None:
            assert self._cores is not None
            self._cores.release()
            self._start()

    def _begin(self) -> None:
        """Take the first of the queue; one in which nothing lives goes on at once."""
        flight = self._queue.popleft()
        if flight.opens:
            self._passed(self._index, flight)
            return
        if self._begun is not None:
            self._begun(flight)
        self._tokens = len(flight.serials)
        flight.prune(self.heard.get(flight.session, 0))
        alive = len(flight.serials)
        if self._watcher is not None:
            self._watcher.begun(self._index, flight, self._tokens)
        seconds = 0.0
        if alive:
            seconds = self._seconds[alive] if alive <= MOST_TOKENS else self._time.of(alive)
            if flight.serials[0] > flight.story.decree:
                self.computed += alive
        self._computing = alive
        self._began = self._clock.now
        if seconds + self._overhead > 0.0:
            self._running = flight
            self._ends = self._began + seconds
            self._finish_at(self._ends + self._overhead)
        else:
            self._conclude(flight)

    def _finish_at(self, when: float) -> None:
        self._plan += 1
        self._clock.at(when, self._finish, self._plan)

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return
        flight = self._running
        assert flight is not None
        self._running = None
        self._conclude(flight)
        if self._cores is not None:
            self._cores.release()
        self._start()

    def _conclude(self, flight: Flight) -> None:
        self.busy += self._clock.now - self._began
        flight.prune(self.heard.get(flight.session, 0))
        if self._watcher is not None:
            self._watcher.done(self._index, flight, self._began, self._tokens, self._computing)
        self._computing = 0
        self._passed(self._index, flight)

    def forget(self, session: int) -> None:
        """The session is over: nothing of it is alive here."""
        self.hear(session, NEVER)
