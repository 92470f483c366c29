"""FlowSpec's policy: continuous, score-ordered, without rounds and without turns.

A verdict moves the root and prunes the tree, the drafter is asked for more at once, and whenever the pipe has room the
best tokens that wait go as the next segment. A sampled token that nobody guessed is just a new root; no round ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp
from typing import ClassVar

from flowspec.schedule.events import (
    Command,
    DrafterLost,
    Event,
    FeaturesArrived,
    SegmentReturned,
    SessionReady,
    TreeGrown,
)
from flowspec.schedule.growth import Growth, GrowthSettings
from flowspec.schedule.options import FLOWSPEC
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session
from flowspec.schedule.window import TYPICAL_TOKENS
from flowspec.wire.messages import DraftTokens


@dataclass(frozen=True, slots=True)
class ContinuousSettings:
    """Every knob of the policy."""

    tree: int = FLOWSPEC.tree
    """Most live draft tokens that are in flight at once, of a session that has the pipe to itself."""
    tree_contended: int = 48
    """The same where nodes share cores."""
    segment: int = FLOWSPEC.segment
    """Most tokens in one segment."""
    segment_contended: int = 24
    """The same where nodes share cores."""
    overhead_seconds: float = 0.0005
    """What a segment costs beside the forward: headers, sockets, wake-ups."""
    worth_in_time: float = 0.25
    """How many tokens a guess is worth in the choice of a segment's size, where every node has its own cores. A segment
    grows until its least probable token, taken so many times, costs more time than it gains. Less than one, since what
    is left out may go with the next segment, and what goes makes the next one later. Where cores are shared it is 1."""
    worth: float = 0.05
    """Expected accepted tokens below which a segment of guesses is not sent, where every node has its own cores."""
    worth_contended: float = 0.5
    """The same where nodes share cores, so that a wasted segment slows the useful ones down."""
    impatience: float = 1.0
    """Weight of the seconds that a segment would wait for one more growth step; very large: it never waits."""
    score_order: bool = FLOWSPEC.score_order
    """Segments hold the most probable tokens first; else those of the highest levels."""
    expansion: bool = FLOWSPEC.expansion
    """The tree grows while tokens are in flight; else from a root that nobody guessed until its first verdict."""
    growth: GrowthSettings = field(default_factory=GrowthSettings)

    @classmethod
    def with_width(cls, width: int) -> ContinuousSettings:
        """The defaults, with another number of children than `GrowthSettings.width`."""
        return cls(growth=GrowthSettings(width=width))


class Continuous:
    """Decides for one session."""

    paced: ClassVar[bool] = False

    def __init__(self, session: Session, settings: ContinuousSettings | None = None) -> None:
        self.session = session
        self.settings = settings or ContinuousSettings()
        self.growth = Growth(session, self.settings.growth)
        self._fresh = True
        """No verdict has moved the root since one that nobody guessed."""

    def handle(self, event: Event, room: Room) -> list[Command]:
        commands: list[Command] = []
        match event:
            case SegmentReturned():
                moved, commands = self.session.advance(event.frontier, event.token)
                if moved is not None:
                    self.growth.follow(moved)
                    commands += self.growth.stop()
                    self._fresh = moved.created
            case TreeGrown():
                self.growth.merge(event)
            case DrafterLost():
                self.growth.lost, self.growth.out = True, None
            case SessionReady() | FeaturesArrived():
                pass
        if not (self._fresh or self.settings.expansion):
            return commands
        self._recall()
        pipe = room.pipe
        asked = self.growth.ask(
            self._cap(room), pipe.round_trip(1), pipe.segment(TYPICAL_TOKENS), free=not pipe.contended
        )
        return [*commands, *asked]

    def _recall(self) -> None:
        """Put into the tree what the text says without the drafter."""
        session = self.session
        if session.recall is not None and not session.prefilling and not session.finished:
            session.recall.extend(session.tree, session.remaining)

    def _cap(self, room: Room) -> int:
        tree = self.settings.tree
        if room.pipe.contended:
            tree = min(tree, self.settings.tree_contended)
        return max(2, tree // room.sessions)

    def _size(self, room: Room) -> int:
        """Most tokens of a segment."""
        size = self.settings.segment
        return min(size, self.settings.segment_contended) if room.pipe.contended else size

    # ---- the next segment --------------------------------------------------------------------------------------------

    def next_segment(self, room: Room) -> DraftTokens | None:
        session = self.session
        if session.prefilling:
            return session.prompt_chunk(room.pipe.prefill_chunk(len(session.prompt)))
        if session.verdict is None:
            self._recall()
        tree = session.tree
        most = min(self._size(room), self._cap(room) - tree.sent)
        waiting = tree.waiting(session.remaining, max(0, most))
        if not waiting:
            return None
        if not self.settings.score_order:
            waiting.sort(key=lambda token: token.depth)
        chances = [exp(token.score) for token in waiting]
        size, rate = self._best(chances, 0.0, room)
        if not session.root_waits and sum(chances[:size]) < self._worth(room):
            return None
        if self._wait(chances, rate, most, room):
            return None
        return tree.columns([token.serial for token in waiting[:size]])

    def _best(self, chances: list[float], delay: float, room: Room) -> tuple[int, float]:
        """How many of the best tokens make the segment that gains most per second, and its gain per second.

        `delay` is the time lost before it leaves.
        """
        best, best_rate, gain = 1, 0.0, 0.0
        worth = 1.0 if room.pipe.contended else self.settings.worth_in_time
        base = room.pipe.segment(1)
        fixed = base + self.settings.overhead_seconds + delay
        for size, chance in enumerate(chances, start=1):
            gain += chance
            rate = gain / (fixed + (room.pipe.segment(size) - base) / worth)
            if rate > best_rate:
                best, best_rate = size, rate
        return best, best_rate

    def _worth(self, room: Room) -> float:
        return self.settings.worth_contended if room.pipe.contended else self.settings.worth

    def _wait(self, chances: list[float], rate: float, most: int, room: Room) -> bool:
        """Whether one more growth step makes the segment gain more per second, the step's own duration counted in."""
        promise = self.growth.promise()
        if promise is None:
            return False
        coming, seconds = promise
        merged = sorted([*chances, *coming], reverse=True)[:most]
        return self._best(merged, self.settings.impatience * seconds, room)[1] > rate
