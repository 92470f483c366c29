"""Puts off the news that stage 1 has begun a segment, as long as that does no harm: what is chosen late is chosen well.

How long that is says the scheduler (`Scheduler.hold`), which has no clock; this has one, and knows nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class CreditTimer:
    """`tell(ticket)` is called for every ticket that was begun, in order, or for the newest of several at once."""

    def __init__(self, hold: Callable[[int], float], tell: Callable[[int], None]) -> None:
        """`hold(ticket)` says for how many seconds the news of it may wait."""
        self._hold = hold
        self._tell = tell
        self._newest = 0
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, ticket: int) -> None:
        """Stage 1 has begun the segment with that ticket. What waits is told first."""
        if self._timer is not None:
            self._timer.cancel()
            self._ring()
        self._newest = ticket
        delay = self._hold(ticket)
        if delay > 0.0:
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)
        else:
            self._ring()

    def close(self) -> None:
        """Nothing more is told."""
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        self._tell(self._newest)
