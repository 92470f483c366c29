"""Prompts that wait to be tokenized: one of each client in turn, so that a client with many waits for itself first.

Pure: knows no tokenizer, no thread and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from flowspec.wire.messages import Generate

CROWD = 4
"""Clients that may have all the prompts here that they may have; beyond that, everybody is turned away."""


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """A request whose prompt has no tokens yet; `since` is when it came, in seconds of the owner's clock."""

    asked: Generate
    peer: bytes
    since: float


class ReadingRoom:
    """At most `room` prompts of one client, and those of `CROWD` clients that have so many; one is read at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._lines: dict[bytes, deque[Unread]] = {}
        """In the order in which it is their turn; none is empty."""
        self._begun: Unread | None = None

    def __len__(self) -> int:
        return sum(map(len, self._lines.values())) + (self._begun is not None)

    def __iter__(self) -> Iterator[Unread]:
        """All that is not tokenized yet."""
        if self._begun is not None:
            yield self._begun
        for line in self._lines.values():
            yield from line

    def full(self, peer: bytes) -> bool:
        """Whether there is no room for one more prompt of this client."""
        return len(self) >= CROWD * self.room or sum(each.peer == peer for each in self) >= self.room

    def enter(self, unread: Unread) -> None:
        self._lines.setdefault(unread.peer, deque()).append(unread)

    def begin(self) -> Unread | None:
        """Whose prompt is to be tokenized now, until `end`; None when none waits."""
        if not self._lines:
            return None
        peer = next(iter(self._lines))
        line = self._lines.pop(peer)
        self._begun = line.popleft()
        if line:
            self._lines[peer] = line
        return self._begun

    def end(self, unread: Unread) -> bool:
        """It is tokenized; False when it has left meanwhile."""
        stayed, self._begun = self._begun is unread, None
        return stayed

    def leave(self, peer: bytes, request: str | None = None) -> list[Unread]:
        """Take a request of a client out, also the one that is being read (None: all of them)."""
        return self._take([each for each in self if each.peer == peer and request in (None, each.asked.request)])

    def empty(self) -> list[Unread]:
        """Take all of them out."""
        return self._take(list(self))

    def _take(self, gone: list[Unread]) -> list[Unread]:
        for unread in gone:
            if unread is self._begun:
                self._begun = None
            else:
                self._lines[unread.peer].remove(unread)
                if not self._lines[unread.peer]:
                    del self._lines[unread.peer]
        return gone
