"""A fake pipe in which stages die and messages vanish; it notices losses as the roles do, and tells the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowspec.schedule.events import (
    Command,
    OpenSession,
    PipeLost,
    PipeRestored,
    SegmentsLost,
    SessionBroken,
)
from flowspec.wire.messages import RosterEntry
from tests.schedule.fake_pipe import FakePipe, Flight, Stage

PROBING = 3.0
"""Seconds between two probes; longer than anything takes, so that they end when nothing is left."""


@dataclass
class ProbeItem:
    """Travels down the pipe behind everything that was sent before it."""

    ticket: int
    opened: tuple[tuple[str, int], ...]
    """Sessions whose opening nobody had acknowledged when it was sent."""


class FaultyStage(Stage):
    """Counts the segments of each session, and gives up a session that misses one."""

    pipe: FaultyPipe

    def __init__(self, pipe: FakePipe, index: int) -> None:
        super().__init__(pipe, index)
        self.numbers: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        while self.running is None and not self.wants_core and self.queue and isinstance(self.queue[0], ProbeItem):
            self.pipe.pass_probe(self.index, self.queue.popleft())  # type: ignore[arg-type]
        super().start()
        if self.queue and isinstance(self.queue[0], ProbeItem) and self.running is None and not self.wants_core:
            self.start()

    def begin(self) -> None:
        flight = self.queue[0] if self.queue else None
        if not isinstance(flight, Flight):  # it died while it waited for a core
            self.wants_core = False
            self.pipe.release()
            self.start()
            return
        session, epoch = flight.command.session, flight.command.epoch
        cache = self.caches.get(session)
        if cache is not None and cache.epoch == epoch:
            if flight.command.number == self.numbers.get((session, epoch), 0):
                self.numbers[session, epoch] = flight.command.number + 1
            else:
                del self.caches[session]
                self.pipe.trouble(session, epoch)
        super().begin()

    def die(self) -> None:
        if self.running is not None:
            self.pipe.release()
        self.running = None
        self.version += 1
        self.queue.clear()
        self.caches.clear()
        self.numbers.clear()


class FaultyPipe(FakePipe):
    """`loss`: share of the messages that vanish on each hop of the forward pipe, while `faults` are left."""

    stage_type = FaultyStage

    def __init__(self, *arguments: Any, loss: float = 0.0, faults: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.loss = loss
        self.faults = faults
        self.opened: set[tuple[str, int]] = set()
        self.restarts = 0
        self.broken: set[str] = set()
        self.down: set[int] = set()
        self.at(PROBING, self.probe)

    def crash(self, index: int, seconds: float) -> None:
        """Stage `index` loses everything, and is back after `seconds`."""
        stage = self.stages[index]
        assert isinstance(stage, FaultyStage)
        stage.die()
        self.down.add(index)
        self.tell(PipeLost())

        def back() -> None:
            self.down.discard(index)
            if not self.down:
                self.tell(PipeRestored())

        self.at(self.now + seconds, back)

    def obey(self, command: Command, roster: tuple[RosterEntry, ...]) -> None:
        if isinstance(command, OpenSession):
            self.opened.add((command.session, command.epoch))
            self.restarts += command.epoch > 0
        super().obey(command, roster)

    def carry(self, index: int, item: Any) -> None:
        if self.faults and self.dice.random() < self.loss:
            self.faults -= 1
            return
        stage = self.stages[index]
        self.in_order(f"forward {index}", self.timing.link, lambda: None if index in self.down else stage.receive(item))

    def pass_on(self, index: int, opened: OpenSession) -> None:
        if index + 1 == len(self.stages):
            self.opened.discard((opened.session, opened.epoch))
        super().pass_on(index, opened)

    def trouble(self, session: str, epoch: int) -> None:
        event = SessionBroken(session, epoch, "a segment never arrived")
        self.in_order("return", self.timing.message, lambda: self.tell(event))

    def probe(self) -> None:
        if self.scheduler.idle:
            return
        if not self.down:
            self.carry(0, ProbeItem(self._ticket, tuple(self.opened)))
        self.at(self.now + PROBING, self.probe)

    def pass_probe(self, index: int, probe: ProbeItem) -> None:
        if index + 1 < len(self.stages):
            self.carry(index + 1, probe)
            return

        def seen() -> None:
            self.tell(SegmentsLost(probe.ticket))
            for session, epoch in probe.opened:
                if (session, epoch) in self.opened:
                    self.tell(SessionBroken(session, epoch, "its opening was lost"))

        self.in_order("return tail", self.timing.message, seen)
