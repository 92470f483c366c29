"""Speculation in rounds: draft a whole tree, cut it into segments level by level, send them, begin again from its end.

Half of a policy: when the verdicts are looked at is for `chunked` and `pruned` to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowspec.schedule.events import GrowTree
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.level_policy import LevelPolicy
from flowspec.schedule.options import RoundOptions
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session


class Rounds(LevelPolicy):
    """One tree at a time. All of its segments enter the pipe as soon as it is drafted."""

    def __init__(self, session: Session, options: RoundOptions) -> None:
        super().__init__(session, LevelGrowth(session, options.top_k, options.depth))
        self.options = options
        self._chunks: list[tuple[int, ...]] = []
        """What the round sends, in order."""
        self._drafting = False

    def _draft(self, room: Room) -> list[GrowTree]:
        session, growth = self.session, self.growth
        if self._over and not self._drafting and not session.finished:
            self._begin_round()
            self._drafting = True
            growth.begin((session.tree.root,), self.options.depth)
        asked = growth.step()
        if self._drafting and not growth.busy:
            self._drafting = False
            best = growth.best(self.options.tree)
            self._take(best)
            depths = {token.serial: token.depth for token in session.tree.ranking()}
            self._chunks = near_equal(sorted(best, key=depths.__getitem__), self.options.chunks)
        return asked

    def _choose(self, room: Room) -> list[int]:
        return self._unsent()

    def _unsent(self) -> list[int]:
        """What is alive of the first segment that was not sent."""
        tree = self.session.tree
        for chunk in self._chunks:
            waiting = [serial for serial in chunk if serial in tree and not tree[serial].sent]
            if waiting:
                return waiting
        return []


def near_equal(serials: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """`serials` in at most `parts` pieces whose sizes differ by one at most, the larger ones first."""
    parts = min(parts, len(serials))
    size, larger = divmod(len(serials), parts) if parts else (0, 0)
    pieces, start = [], 0
    for part in range(parts):
        end = start + size + (part < larger)
        pieces.append(tuple(serials[start:end]))
        start = end
    return pieces
