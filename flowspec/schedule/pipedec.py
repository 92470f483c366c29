"""PipeDec (arXiv:2504.04104): one level of the tree per turn.

The pipe holds one level of the tree in each stage. When the deepest verified level comes back, its verdict prunes all
others, and the next level enters: the best children of what is left of the one before it. A sampled token that is not
in the tree ends the round, and the next one begins with that token alone.
"""

from __future__ import annotations

from flowspec.schedule.events import Command, GrowTree, SegmentReturned
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.level_policy import LevelPolicy
from flowspec.schedule.options import PipedecOptions
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session


class Pipedec(LevelPolicy):
    """Decides for one session."""

    def __init__(self, session: Session, options: PipedecOptions) -> None:
        super().__init__(session, LevelGrowth(session, options.top_k, depth=2))
        self.options = options
        self._level: list[int] = []
        """The deepest level that was chosen."""
        self._grown = False
        """Its children are known, or being asked for."""
        self._drafting = False

    def _hear(self, event: SegmentReturned) -> list[Command]:
        moved, commands = self._follow(event)
        tree = self.session.tree
        if self._over:
            self._begin_round()
            self._descend([tree.root])
        elif moved is not None and not any(serial in tree for serial in self._level):
            # All of the level died, though not all above it: it is the level above that is the deepest now.
            chosen = [token for token in tree.ranking() if token.serial in self._chosen]
            depth = max((token.depth for token in chosen), default=0)
            self._descend([token.serial for token in chosen if token.depth == depth])
        return commands

    def _descend(self, level: list[int]) -> None:
        self._level, self._grown, self._drafting = level, False, False
        self._take(level)

    def _draft(self, room: Room) -> list[GrowTree]:
        asked = self.growth.step()
        while not asked and not self.growth.busy and self._level:
            if self._drafting:
                children = [serial for serial in self.growth.best() if serial not in self._chosen]
                self._drafting = False
                if children:
                    self._descend(children[: self.options.layer])
            if self._grown or not self._leaves(room):
                break
            self._grown = self._drafting = True
            self.growth.begin(self._level, 1)
            asked = self.growth.step()
        return asked

    def _leaves(self, room: Room) -> bool:
        """The deepest level has left, or can: the one below it is due."""
        tree = self.session.tree
        waits = any(not tree[serial].sent for serial in self._level if serial in tree)
        return not waits or self._in_flight < room.pipe.stages

    def _choose(self, room: Room) -> list[int]:
        if self._in_flight >= room.pipe.stages:
            return []
        waiting = self._waiting(by_score=False)
        return [token.serial for token in waiting if token.depth == waiting[0].depth]
