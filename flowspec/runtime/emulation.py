"""Slow devices and slow links on a fast machine: what is emulated is time, never content.

`hold` keeps a result until the emulated time of a stage is over; `EmulatedSender` delays what a link carries.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowspec.transport.base import ChannelStatistics, Sender
from flowspec.wire.messages import Message

if TYPE_CHECKING:
    import torch

    from flowspec.runtime.node import Node
    from flowspec.topology import Topology

HEADER_BYTES = 200
"""Typical size of a header frame: what a message without tensors is charged on an emulated link."""


def hold(began: float, duration: float, steps: int, alive: Callable[[], bool], heard: threading.Event) -> bool:
    """Wait until `began + duration` (`time.perf_counter` seconds); False when the work died meanwhile.

    A real device notices between two layers that its work is dead, so the wait ends at the next of `steps` equal parts.
    `heard` is set by whoever brings news that may change `alive`.
    """
    end = began + duration
    while (left := end - time.perf_counter()) > 0:
        heard.clear()
        if not alive():
            step = duration / max(steps, 1)
            done = time.perf_counter() - began
            time.sleep(max(0.0, min(left, step - done % step)))
            return False
        heard.wait(left)
    return alive()


class EmulatedSender:
    """A `Sender` whose link has a latency (seconds) and a rate (bytes per second); order is kept, one at a time."""

    def __init__(self, inner: Sender, *, latency: float, rate: float | None, capacity: int = 64) -> None:
        self._inner = inner
        self._latency = latency
        self._rate = rate
        self._free_at = 0.0
        self._queue: asyncio.Queue[tuple[float, Message, Sequence[torch.Tensor]]] = asyncio.Queue(capacity)

    async def send(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int:
        size = HEADER_BYTES + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        now = time.perf_counter()
        busy = size / self._rate if self._rate else 0.0
        self._free_at = max(now, self._free_at) + busy
        await self._queue.put((self._free_at + self._latency, message, tensors))
        return size

    async def pump(self) -> None:
        """Task: deliver what is due, in order."""
        while True:
            due, message, tensors = await self._queue.get()
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            await self._inner.send(message, tensors)

    def statistics(self) -> ChannelStatistics:
        return self._inner.statistics()


def over_link(sender: Sender, topology: Topology, node: Node, peer: str) -> Sender:
    """What `node` sends to `peer` through: slowed down where the topology emulates that link, else `sender` itself."""
    link = topology.link_emulation(node.name, peer)
    if link is None:
        return sender
    slow = EmulatedSender(sender, latency=link.latency, rate=link.rate)
    node.spawn(slow.pump(), f"link to {peer}")
    return slow
