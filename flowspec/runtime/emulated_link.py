"""Slow links on a fast network: a channel that delivers what is sent when another network would have.

When that is says `flowspec.topology.link_calendar`; a message takes its bytes' time at the link's rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from flowspec.runtime.alarm import Alarm
from flowspec.topology.link_calendar import HEADER_BYTES, LinkCalendar
from flowspec.topology.sections import LinkEmulation
from flowspec.transport.base import ChannelStatistics, Sender
from flowspec.wire.messages import Message

if TYPE_CHECKING:
    import torch

    from flowspec.runtime.node import Node
    from flowspec.topology import Topology

CAPACITY: Final = 64
"""Messages under way; then senders wait."""


class LinkSchedule:
    """When messages arrive: pure, told the time. `seed` draws the jitter, the same in every run."""

    def __init__(self, link: LinkEmulation, seed: str = "") -> None:
        self._link = link
        self._calendar = LinkCalendar(link, random.Random(seed))

    def charge(self, tokens: int, size: int) -> int:
        """Bytes that a message weighs on the link, with `size` bytes beside the header: hidden states of that many
        tokens, or for 0 something else, which weighs what it is."""
        per_token = self._link.bytes_per_token
        return HEADER_BYTES + (per_token * tokens if tokens and per_token is not None else size)

    def arrival(self, now: float, tokens: int = 0, size: int = 0) -> float:
        """When a message that is sent now, after all others that were asked for, arrives (seconds)."""
        rate = self._link.rate
        busy = self.charge(tokens, size) / rate if rate else 0.0
        return self._calendar.arrival(now, busy, small=not tokens and not size)


class EmulatedSender:
    """A `ThreadSender` whose messages take the time of an emulated link; `pump` has to run, in the loop that runs now.

    `send` returns the bytes that the link was charged, and waits while too many are under way. A message's time begins
    with the call, also of another thread, as it would on a link that is not emulated.
    """

    def __init__(
        self,
        inner: Sender,
        link: LinkEmulation,
        *,
        seed: str = "",
        clock: Callable[[], float] = time.perf_counter,
        until: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """`until(when)` waits on `clock`; without it, a thread of the pump's own does."""
        self._inner = inner
        self._schedule = LinkSchedule(link, seed)
        self._clock = clock
        self._until = until
        self._loop = asyncio.get_running_loop()
        self._entrance = threading.Lock()
        """Held by whoever puts a message on the link: they arrive in the order in which they came."""
        self._under_way: deque[tuple[float, Message, Sequence[torch.Tensor]]] = deque()
        self._entered = asyncio.Event()
        self._left = asyncio.Event()
        self._waiting = asyncio.Lock()
        """Held by the first of those who wait for room."""

    async def send(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int:
        async with self._waiting:
            while (charged := self._enter(message, tensors)) is None:
                self._left.clear()
                await self._left.wait()
        self._entered.set()
        return charged

    def send_from_thread(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int | None:
        charged = None if self._waiting.locked() else self._enter(message, tensors)
        if charged is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody delivers anything any more
                self._loop.call_soon_threadsafe(self._entered.set)
        return charged

    def _enter(self, message: Message, tensors: Sequence[torch.Tensor]) -> int | None:
        """Put it on the link, from any thread, and return what that charges; None where there is no room."""
        tokens, size = hidden_tokens(tensors), own_bytes(tensors)
        with self._entrance:
            if len(self._under_way) >= CAPACITY:
                return None
            self._under_way.append((self._schedule.arrival(self._clock(), tokens, size), message, tensors))
        return self._schedule.charge(tokens, size)

    def hidden_bytes(self, tensors: Sequence[torch.Tensor]) -> int:
        """What these hidden states weigh on the link."""
        return self._schedule.charge(hidden_tokens(tensors), own_bytes(tensors)) - HEADER_BYTES

    async def pump(self) -> None:
        """Task: deliver what is due, in order."""
        async with AsyncExitStack() as stack:
            until = self._until
            if until is None:
                until = (await stack.enter_async_context(Alarm("emulated link"))).until
            while True:
                while self._under_way:
                    due, message, tensors = self._under_way[0]
                    await until(due)
                    await self._inner.send(message, tensors)
                    self._under_way.popleft()
                    self._left.set()
                self._entered.clear()
                if not self._under_way:
                    await self._entered.wait()

    def statistics(self) -> ChannelStatistics:
        return self._inner.statistics()


def hidden_tokens(tensors: Sequence[torch.Tensor]) -> int:
    """Tokens whose hidden states these are: rows of matrices. The bytes with which a link is probed are a vector."""
    return sum(len(tensor) for tensor in tensors if tensor.dim() > 1)


def own_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def hidden_bytes(sender: Sender, tensors: Sequence[torch.Tensor]) -> int:
    """What hidden states weigh on the way through `sender`: their own bytes, or what an emulated link charges."""
    return sender.hidden_bytes(tensors) if isinstance(sender, EmulatedSender) else own_bytes(tensors)


def over_link(sender: Sender, topology: Topology, node: Node, peer: str, channel: str = "pipe") -> Sender:
    """What `node` sends to `peer` through: slowed down where the topology emulates that link, else `sender` itself."""
    link = topology.link_emulation(node.name, peer)
    if link is None:
        return sender
    slow = EmulatedSender(sender, link, seed=f"{node.name} {peer} {channel}")
    node.spawn(slow.pump(), f"link to {peer}")
    return slow
