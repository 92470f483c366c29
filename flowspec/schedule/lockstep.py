"""FlowSpec as its paper describes it: rounds of turns, one segment in each stage, one in for each one out.

A round begins with a whole tree, whose best tokens fill the pipe. A turn is a segment that comes back: its verdict
prunes, what waits enters as one segment, and meanwhile the drafter expands the tree: from the new root, or from the
deepest level where nothing was accepted. A sampled token that was not chosen ends the round, and what is in flight is
dropped. The stages keep no common beat: a turn ends with its own segment, not with the slowest of all.
"""

from __future__ import annotations

from enum import Enum

from flowspec.schedule.events import Command, GrowTree, SegmentReturned
from flowspec.schedule.level_growth import LevelGrowth
from flowspec.schedule.level_policy import LevelPolicy
from flowspec.schedule.options import LockstepOptions
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session


class Draft(Enum):
    """What a draft is for."""

    FIRST = "the tree of a new round"
    FRESH = "a tree from the token that was accepted last"
    DEEPER = "more levels on top of the last tree"


class Lockstep(LevelPolicy):
    """Decides for one session."""

    def __init__(self, session: Session, options: LockstepOptions) -> None:
        super().__init__(session, LevelGrowth(session, options.top_k, options.depth + options.deeper_depth))
        self.options = options
        self._due: Draft | None = None
        self._drafting: Draft | None = None
        self._filling = False
        """The first tree of the round is on its way into the pipe; no segment of it has come back."""

    # ---- a turn ------------------------------------------------------------------------------------------------------

    def _hear(self, event: SegmentReturned) -> list[Command]:
        moved, commands = self._follow(event)
        if self._over:
            if self._drafting is not Draft.FIRST:
                self._begin_round()
                self._filling = True
                self._due, self._drafting = Draft.FIRST, None
        elif self.session.verdict is not None and event.ticket not in self._older:
            self._filling = False
            if self.options.expansion:
                self._due = Draft.FRESH if moved is not None else self._due or Draft.DEEPER
        return commands

    def _draft(self, room: Room) -> list[GrowTree]:
        asked = self.growth.step()
        while not asked:
            if self._drafting is not None:
                if self.growth.busy:
                    break
                self._keep(self._drafting)
                self._drafting = None
            if self._due is None:
                break
            self._drafting, self._due = self._due, None
            self._begin(self._drafting)
            asked = self.growth.step()
        return asked

    def _begin(self, draft: Draft) -> None:
        growth, options = self.growth, self.options
        if draft is Draft.DEEPER:
            growth.begin(growth.deepest(options.top_k), options.deeper_depth)
        else:
            growth.begin((self.session.tree.root,), options.depth)

    def _keep(self, draft: Draft) -> None:
        """The best of a draft that is complete shall be sent."""
        options = self.options
        sizes = {Draft.FIRST: options.tree, Draft.FRESH: options.expansion_tree, Draft.DEEPER: options.deeper_tree}
        self._take(self.growth.best(sizes[draft]))

    # ---- the next segment --------------------------------------------------------------------------------------------

    def _choose(self, room: Room) -> list[int]:
        if self._drafting is Draft.FIRST or self._in_flight >= room.pipe.stages:
            return []
        waiting = [token.serial for token in self._waiting(by_score=self.options.score_order)]
        return waiting[: self.options.segment] if self._filling else waiting
