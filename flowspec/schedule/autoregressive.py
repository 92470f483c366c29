"""Plain pipeline parallelism: one token at a time through all stages. The oracle of exactness, and the baseline."""

from __future__ import annotations

from typing import ClassVar

from flowspec.schedule.events import Command, Event, SegmentReturned
from flowspec.schedule.policy import Room
from flowspec.schedule.session import Session
from flowspec.wire.messages import DraftTokens


class Autoregressive:
    """Sends the prompt in chunks, then each sampled token as soon as it is known."""

    paced: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        self.session = session

    def handle(self, event: Event, room: Room) -> list[Command]:
        if isinstance(event, SegmentReturned):
            return self.session.advance(event.frontier, event.token)[1]
        return []

    def next_segment(self, room: Room) -> DraftTokens | None:
        session = self.session
        if session.prefilling:
            return session.prompt_chunk(room.pipe.prefill_chunk(len(session.prompt)))
        if session.root_waits:
            return session.tree.columns((session.tree.root,))
        return None
