"""Chunked pipeline speculation with pruning: the rounds of `chunked`, but every verdict counts at once.

What a verdict contradicts is dropped wherever it is, in the stages and among what waits; the round ends when the rest
of its tree is back, and the next tree is drafted then.
"""

from __future__ import annotations

from flowspec.schedule.events import Command, SegmentReturned
from flowspec.schedule.rounds import Rounds


class Pruned(Rounds):
    """Decides for one session."""

    def _hear(self, event: SegmentReturned) -> list[Command]:
        return self._follow(event)[1]
