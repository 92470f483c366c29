"""How a segment leaves a stage: on along the pipe with what is left of it, or at the tail as return and verdict.

The compute thread itself sends it where the channels allow: to wake the event loop first takes a fifth of the time
between two stages. What cannot go at once goes from the loop. Knows no session's rows and no trace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flowspec.roles.feature_outbox import FeatureOutboxes
from flowspec.roles.stage_session import Step
from flowspec.runtime.emulated_link import hidden_bytes
from flowspec.transport.base import Sender, ThreadSender
from flowspec.wire.messages import Returned, Segment, Verdict

if TYPE_CHECKING:
    from torch import Tensor


class Departure:
    """Of one stage. `forward` is None at the tail, `verdicts` everywhere else."""

    def __init__(
        self, node: str, forward: Sender | None, verdicts: Sender | None, back: Sender, outboxes: FeatureOutboxes
    ) -> None:
        self._node = node
        self._forward = forward
        self._verdicts = verdicts
        self._back = back
        self._outboxes = outboxes

    def at_once(self, segment: Segment, step: Step) -> int | None:
        """On the compute thread: as `send`, or None where that has to do it.

        At the tail not for sessions whose drafter reads its features: those go first, from the loop.
        """
        if self._forward is None:
            if not isinstance(self._back, ThreadSender):
                return None
            return self._back.send_from_thread(self._returned(segment, step))
        if not isinstance(self._forward, ThreadSender):
            return None
        return self._forward.send_from_thread(*self._onward(segment, step))

    async def send(self, segment: Segment, step: Step) -> int:
        """Pass on, or give the ticket back. Returns the bytes of the message."""
        if self._forward is not None:
            return await self._forward.send(*self._onward(segment, step))
        # What the verdict accepts reaches the drafter no later than the news of it.
        await self._outboxes.send_due(self._back)
        return await self._back.send(self._returned(segment, step))

    async def publish(self, segment: Segment, step: Step) -> None:
        """At the tail: the verdict, if it moved.

        After the ticket: for that the next segment waits, which tells the verdict too. Where nodes share cores, all
        those who hear a verdict would else stand before the coordinator.
        """
        if self._verdicts is not None and step.moved and step.verdict is not None:
            await self._verdicts.send(Verdict(segment.session, segment.epoch, *step.verdict))

    def _onward(self, segment: Segment, step: Step) -> tuple[Segment, tuple[Tensor, ...]]:
        assert self._forward is not None
        tensors = () if step.hidden is None else (step.hidden,)
        carried = segment.carried_bytes + hidden_bytes(self._forward, tensors)
        return replace(segment, draft=step.draft, carried_bytes=carried), tensors

    def _returned(self, segment: Segment, step: Step) -> Returned:
        frontier, token = step.verdict or (None, None)
        return Returned(
            self._node,
            segment.ticket,
            segment.session,
            segment.epoch,
            segment.number,
            frontier,
            token,
            step.computed,
            segment.carried_bytes,
        )
