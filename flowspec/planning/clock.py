"""A virtual clock, and the channels and cores that take time on it."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from flowspec.errors import InvariantViolation
from flowspec.planning.pipe import LinkTime
from flowspec.topology.link_calendar import LinkCalendar

MOST_EVENTS = 50_000_000
"""After which a simulation counts as one that never ends."""


class VirtualClock:
    """Runs callbacks at their times; at the same time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._waiting: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self.events += 1
        heapq.heappush(self._waiting, (when, self.events, action, arguments))

    def run(self, most: int = MOST_EVENTS) -> None:
        """Until nothing is left to happen."""
        waiting, pop = self._waiting, heapq.heappop
        while waiting:
            self.now, _, action, arguments = pop(waiting)
            action(*arguments)
            if self.events > most:
                raise InvariantViolation(f"a simulation of more than {most} events: it does not come to an end")


class Channel:
    """One hop in one direction, as a link and a fixed overhead; what is sent earlier arrives earlier."""

    def __init__(self, clock: VirtualClock, link: LinkTime, overhead: float, dice: random.Random) -> None:
        self._clock = clock
        self._overhead = overhead
        self._link = link
        self._calendar = LinkCalendar(link, dice)

    def arrival(self, tokens: int) -> float:
        """When a message that is sent now, with hidden states of that many tokens, arrives."""
        return self._calendar.arrival(self._clock.now, self._link.busy(tokens), small=not tokens) + self._overhead


class Cores:
    """Cores that several workers share: at most that many compute at once, the others wait in order."""

    def __init__(self, clock: VirtualClock, count: int) -> None:
        self._clock = clock
        self._free = count
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, begin: Callable[[], None]) -> None:
        """Call `begin` as soon as a core is free for it."""
        if self._free:
            self._free -= 1
            begin()
        else:
            self._waiting.append(begin)

    def release(self) -> None:
        if self._waiting:
            self._clock.at(self._clock.now, self._waiting.popleft())
        else:
            self._free += 1
