"""What a policy is: the part of the schedule that decides, for one session, what to draft and what to send.

A policy is told what happened and answers with commands; when the arbiter has room in the pipe it asks for the next
segment, at the last moment, so that the choice rests on the newest verdict. It looks at no clock and no other session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from flowspec.schedule.events import Command, Event
from flowspec.schedule.session import Session
from flowspec.schedule.window import PipeModel
from flowspec.wire.messages import DraftTokens


@dataclass(frozen=True, slots=True)
class Room:
    """What the arbiter tells a policy when it asks: the pipe, and how many sessions share it (this one included)."""

    pipe: PipeModel
    sessions: int = 1


class Policy(Protocol):
    """Decides for one session. `Session` holds the state that all policies share."""

    session: Session
    paced: ClassVar[bool]
    """It keeps count of its segments in flight itself: those behind the prompt are not held back by the window."""

    def handle(self, event: Event, room: Room) -> list[Command]:
        """Take notice of `SessionReady`, `SegmentReturned`, `TreeGrown`, `FeaturesArrived`, `DrafterLost`.

        The answer is to emit, to finish, to let the drafter grow the tree.
        """

    def next_segment(self, room: Room) -> DraftTokens | None:
        """What to send now that one segment has room; None to leave the room. Changes nothing."""
