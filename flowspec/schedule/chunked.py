"""Chunked pipeline speculation: a whole tree through the pipe in segments, verified when all of it is back.

What the literature calls Chunk-PP, or naive. Nothing may be dropped while a round is under way, or the baseline would
be faster than what it stands for: the stages of such a session take no notice of verdicts on their own (its options say
that it does not prune), and the coordinator looks at them only when the last segment has come back. The tail samples as
segments come, which moves that work to where it costs the round no time.
"""

from __future__ import annotations

from flowspec.schedule.events import Command, SegmentReturned
from flowspec.schedule.rounds import Rounds


class Chunked(Rounds):
    """Decides for one session."""

    def _hear(self, event: SegmentReturned) -> list[Command]:
        session = self.session
        if session.prefilling or session.flights or self._unsent():
            return []
        return self._follow(event)[1]
