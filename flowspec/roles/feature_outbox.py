"""Features of one session at one stage, from their acceptance until the coordinator is known to have them.

Apart from the cache rows, which go on living their own lives: what is in here is freed by an acknowledgement alone, or
with the session. Event loop only; knows neither models nor channels.

Bounded: every position is put in once, in order, so there are never more than the session's `row_limit` positions, and
a stage counts that many against its memory limit when it admits the session.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowspec.transport.base import Sender
from flowspec.wire.messages import Features, RosterEntry

if TYPE_CHECKING:
    from torch import Tensor

RESEND_SEGMENTS = 16
"""Segments heard without a newer acknowledgement after which what was sent is sent again; each time twice as many.

More than a pipe of common length ever has in flight, so that nothing is sent twice while nothing is lost.
"""


@dataclass(slots=True)
class FeatureOutbox:
    """What waits, in parts as they were accepted; a part is at most as large as a segment, so it fits a message."""

    node: str
    session: str
    epoch: int
    taps: tuple[int, ...]
    acknowledged: int = 0
    """The coordinator has all positions below this."""
    _parts: deque[tuple[int, tuple[Tensor, ...]]] = field(default_factory=deque)
    _sent: int = 0
    """Parts at the front of `_parts` that need not be sent (again)."""
    _silent: int = 0
    """Segments since the acknowledgement last moved, while something that was sent waits for it."""
    _patience: int = RESEND_SEGMENTS

    @property
    def bytes_held(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensors in self._parts for tensor in tensors)

    @property
    def due(self) -> bool:
        """Something has to be sent."""
        return self._sent < len(self._parts)

    def put(self, first: int, tensors: tuple[Tensor, ...]) -> None:
        """Accepted positions from `first` on: one tensor (count, hidden) per tap, on the CPU."""
        if first + len(tensors[0]) > self.acknowledged:
            self._parts.append((first, tensors))

    def hear(self, acknowledged: int) -> None:
        """A segment came by, whose roster says so; an older number than one heard before changes nothing."""
        if acknowledged > self.acknowledged:
            self.acknowledged = acknowledged
            while self._parts and self._parts[0][0] + len(self._parts[0][1][0]) <= acknowledged:
                self._parts.popleft()
                self._sent = max(0, self._sent - 1)
            self._silent, self._patience = 0, RESEND_SEGMENTS
        elif self._sent:
            self._silent += 1
            if self._silent >= self._patience:
                self._sent, self._silent, self._patience = 0, 0, 2 * self._patience

    def take_due(self) -> Iterator[tuple[Features, tuple[Tensor, ...]]]:
        """What has to be sent, in order; each counts as sent when it is handed out."""
        while self.due:
            first, tensors = self._parts[self._sent]
            self._sent += 1
            yield Features(self.node, self.session, self.epoch, first, len(tensors[0]), self.taps), tensors


class FeatureOutboxes:
    """All outboxes of one stage, one per session that wants features of it."""

    def __init__(self) -> None:
        self._outboxes: dict[str, FeatureOutbox] = {}
        self._something_due = asyncio.Event()
        self._order = asyncio.Lock()

    @property
    def bytes_held(self) -> int:
        return sum(outbox.bytes_held for outbox in self._outboxes.values())

    def open(self, outbox: FeatureOutbox) -> Callable[[int, tuple[Tensor, ...]], None]:
        """Take an outbox in, in place of one of an older epoch; returns its `put`, to be called from any thread."""
        loop = asyncio.get_running_loop()
        self._outboxes[outbox.session] = outbox

        def put(first: int, tensors: tuple[Tensor, ...]) -> None:
            outbox.put(first, tensors)
            if outbox.due:
                self._something_due.set()

        def collected(first: int, tensors: tuple[Tensor, ...]) -> None:
            loop.call_soon_threadsafe(put, first, tensors)

        return collected

    def close(self, session: str) -> None:
        """Free what is left of a session."""
        self._outboxes.pop(session, None)

    def hear(self, entry: RosterEntry) -> None:
        """A segment came by; this is what its roster says of one session."""
        outbox = self._outboxes.get(entry.session)
        if outbox is not None and outbox.epoch == entry.epoch:
            outbox.hear(entry.features)
            if outbox.due:
                self._something_due.set()

    async def send_due(self, sender: Sender) -> None:
        """Return when everything that is due now has been sent; in order, also when several wait for it."""
        if not self._something_due.is_set() and not self._order.locked():
            return
        async with self._order:
            self._something_due.clear()
            for outbox in list(self._outboxes.values()):
                for message, tensors in outbox.take_due():
                    await sender.send(message, tensors)

    async def send(self, sender: Sender) -> None:
        """Task: send what is due as soon as it is."""
        while True:
            await self._something_due.wait()
            await self.send_due(sender)
