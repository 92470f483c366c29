"""Requests that wait for a session: first come, first served, and no more than there is room for.

Also says when it is worth to ask again. Pure: knows no clock, no client and no pipe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from flowspec.roles.request import Admitted

FIRST_GUESS = 2.0
"""Seconds that a request is taken to last before one has ended."""

SMOOTHING = 0.2
"""Weight of the newest request in the running mean of how long they last."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that was admitted; `asked` is when, in seconds of the owner's clock."""

    admitted: Admitted
    asked: float


class WaitingRoom:
    """At most `room` requests; `sessions` is how many are served at the same time."""

    def __init__(self, room: int, sessions: int) -> None:
        self.room = room
        self._sessions = sessions
        self._line: deque[Waiting] = deque()
        self._seconds = FIRST_GUESS

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._line)

    @property
    def full(self) -> bool:
        return len(self._line) >= self.room

    @property
    def retry_after(self) -> float:
        """Seconds until there should be room in the line: until one of those that run has ended."""
        return round(max(0.1, self._seconds / self._sessions), 1)

    def enter(self, waiting: Waiting) -> None:
        self._line.append(waiting)

    def next(self) -> Waiting:
        return self._line.popleft()

    def leave(self, peer: bytes, request: str | None = None) -> list[Waiting]:
        """Take a request of a client out of the line (None: all of them)."""
        left = [
            each
            for each in self._line
            if each.admitted.peer == peer and (request is None or each.admitted.request == request)
        ]
        for each in left:
            self._line.remove(each)
        return left

    def empty(self) -> list[Waiting]:
        """Take all of them out."""
        left = list(self._line)
        self._line.clear()
        return left

    def lasted(self, seconds: float) -> None:
        """A request has ended after so long."""
        self._seconds += SMOOTHING * (seconds - self._seconds)
