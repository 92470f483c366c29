"""What the coordinator sends down the forward pipe: one message after the other, in the order in which it was decided.

What a segment says of other sessions is filled in when it leaves, so that it is as new as can be. Decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from flowspec.roles.trace_desk import TraceDesk
from flowspec.transport.base import Sender
from flowspec.wire.messages import Cancelled, Close, Message, Segment


class ForwardDesk:
    """`put` never waits; `run` has to run."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Message] = asyncio.Queue()

    def put(self, message: Message) -> None:
        """Send it behind all that was put here before."""
        self._waiting.put_nowait(message)

    async def run(
        self,
        pipe: Sender,
        hints: Sender,
        traces: TraceDesk,
        *,
        completed: Callable[[Segment], Segment],
        left: Callable[[str, int], None],
    ) -> None:
        """Task. Each segment is `completed` before it is sent; `left(session, bytes)` is told when it was."""
        while True:
            message = await self._waiting.get()
            if isinstance(message, Segment):
                message = completed(message)
                began = time.perf_counter_ns()
                size = await pipe.send(message)
                if traces.live:
                    traces.sent(message, began, size)
                left(message.session, size)
            else:
                await pipe.send(message)
                if isinstance(message, Close):
                    await hints.send(Cancelled(message.session, message.epoch))
            query = traces.clock_query() if traces.live else None
            if query is not None:
                await hints.send(query)
