"""When messages arrive over one hop: shared by links that are emulated and links that are simulated.

A message leaves when those before it have left, takes the link for its own time, is then under way for the latency and
a share of the jitter, and never overtakes. One that is only a header can have a time of its own: it is small enough to
slip in between the packets of a larger one, so it keeps nobody waiting, but overtakes nobody either. Pure: it is told
the time.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

HEADER_BYTES: Final = 200
"""Typical size of a header frame: what every message is charged."""


class Hop(Protocol):
    """What a link takes, in seconds."""

    @property
    def latency(self) -> float:
        """That a message is under way after its last byte has left."""
        ...

    @property
    def message(self) -> float | None:
        """Of a message that is only a header; None: latency, and its bytes."""
        ...

    @property
    def jitter(self) -> float:
        """Most that a message may take longer; each draws its own, evenly."""
        ...


class LinkCalendar:
    """One direction of one hop; `dice` draws the jitter."""

    def __init__(self, hop: Hop, dice: random.Random) -> None:
        self._hop = hop
        self._dice = dice
        self._free_at = 0.0
        self._newest = 0.0

    def arrival(self, now: float, busy: float, *, small: bool) -> float:
        """When a message sent now arrives that takes the link for `busy`; `small`: it carries nothing but a header."""
        hop = self._hop
        if small and hop.message is not None:
            when = now + hop.message
        else:
            self._free_at = max(now, self._free_at) + busy
            when = self._free_at + hop.latency
        if hop.jitter:
            when += self._dice.random() * hop.jitter
        self._newest = max(self._newest, when)
        return self._newest
