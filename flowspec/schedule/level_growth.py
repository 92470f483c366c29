"""Whole trees, drafted level by level: expand the best k tokens of a level, go down, keep the best of all at the end.

That is the beam of EAGLE-2, and what the baselines draft with: its size and its number of steps are given, and neither
what a step costs nor how often the drafter was right changes them. What the drafter has said and cannot say better now
is not asked for again. Knows nothing of the pipe and sends no segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flowspec.schedule.events import GrowTree
from flowspec.schedule.growth import Growth, GrowthSettings
from flowspec.schedule.session import Session


@dataclass(slots=True)
class Beam:
    """One draft that is under way."""

    level: tuple[int, ...]
    """The tokens that are expanded now."""
    left: int
    """Levels that are still to come, the children of `level` included."""
    seen: set[int] = field(default_factory=set)
    """Every token of the draft."""


class LevelGrowth(Growth):
    """As `Growth`, but what is expanded follows from `begin`. `top_k` and `depth` bound the trees that are drafted."""

    def __init__(self, session: Session, top_k: int, depth: int) -> None:
        largest = 1 + top_k + (depth - 1) * top_k * top_k
        super().__init__(session, GrowthSettings(expand=top_k, pool=2 * largest, width=top_k))
        self._top_k = top_k
        self._beam: Beam | None = None
        self._seen: set[int] = set()

    @property
    def trust(self) -> float:
        """The drafter's scores are taken as they are."""
        return 1.0

    @property
    def busy(self) -> bool:
        """A draft was begun and is not complete."""
        return self._beam is not None

    def begin(self, level: Iterable[int], depth: int) -> None:
        """Draft `depth` levels below the tokens `level`, in place of the draft that is under way, if there is one."""
        level = tuple(level)
        self._beam = Beam(level, depth, set(level))

    def step(self) -> list[GrowTree]:
        """The next step of the draft, if one is due; when the draft is complete it is not `busy` any more."""
        if not self.session.active:
            return []
        while self._beam is not None and self.out is None:
            asked = self.ask(0)
            if asked:
                return asked
            self._descend(self._beam)
        return []

    def _choose(self, cap: int, plain_seconds: float, patience: float, free: bool) -> list[int]:
        """Tokens of the level for which the drafter has not answered, or not with the features that are there now."""
        session, tree = self.session, self.session.tree
        if self._beam is None or self._beam.left < 1:
            return []
        known = min(session.features, session.root_position) if session.reads_features else 0
        depths = {token.serial: token.depth for token in tree.ranking()}
        return sorted(
            serial
            for serial in self._beam.level
            # Children at depth `remaining` could not matter any more.
            if serial in tree and depths[serial] + 1 < session.remaining and tree[serial].features < known
        )

    def _descend(self, beam: Beam) -> None:
        """Everything that there is to know of the level is known: on to the best of its children."""
        tree = self.session.tree
        children = {
            child for serial in beam.level if serial in tree for child in tree[serial].children.values() if beam.left
        }
        beam.seen |= children
        beam.left -= 1
        beam.level = tuple(token.serial for token in tree.ranking() if token.serial in children)[: self._top_k]
        if beam.left < 1 or not beam.level:
            self._seen, self._beam = beam.seen, None

    def best(self, most: int | None = None) -> list[int]:
        """The best tokens of the last complete draft that are alive, best first; any prefix can be sent."""
        limit = self.session.remaining
        alive = (token for token in self.session.tree.ranking() if token.serial in self._seen)
        return [token.serial for token in alive if token.depth < limit][:most]

    def deepest(self, most: int) -> list[int]:
        """The best tokens of the deepest level of the last complete draft that is alive."""
        alive = [token for token in self.session.tree.ranking() if token.serial in self._seen]
        depth = max((token.depth for token in alive), default=0)
        return [token.serial for token in alive if token.depth == depth][:most]
