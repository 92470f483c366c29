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
        """On the compute thread: as `send`, or None where that has to do it, all of it.

        At the tail not for sessions whose drafter reads its features: those go first, from the loop.
        """
        if self._forward is not None:
            if not isinstance(self._forward, ThreadSender):
                return None
            return self._forward.send_from_thread(*self._onward(segment, step))
        if not isinstance(self._verdicts, ThreadSender) or not isinstance(self._back, ThreadSender):
            return None
        sent = self._back.send_from_thread(self._returned(segment, step))
        if sent is not None and (verdict := self._verdict(segment, step)) is not None:
            # A publisher never has to wait. Were it closed, nobody would be there to hear.
            self._verdicts.send_from_thread(verdict)
        return sent

    async def send(self, segment: Segment, step: Step) -> int:
        """Pass on, or give the ticket back and then publish what moved. Returns the bytes of the pipe's message.

        In this order, since the next segment waits for the ticket alone, and says what the verdict was.
        """
        if self._forward is not None:
            return await self._forward.send(*self._onward(segment, step))
        # What the verdict accepts reaches the drafter no later than the news of it.
        await self._outboxes.send_due(self._back)
        sent = await self._back.send(self._returned(segment, step))
        verdict = self._verdict(segment, step)
        if verdict is not None and self._verdicts is not None:
            await self._verdicts.send(verdict)
        return sent

    def _onward(self, segment: Segment, step: Step) -> tuple[Segment, tuple[Tensor, ...]]:
        assert self._forward is not None
        tensors = () if step.hidden is None else (step.hidden,)
        carried = segment.carried_bytes + hidden_bytes(self._forward, tensors)
        return replace(segment, draft=step.draft, carried_bytes=carried), tensors

    def _verdict(self, segment: Segment, step: Step) -> Verdict | None:
        """What is to be published."""
        if not step.moved or step.verdict is None:
            return None
        return Verdict(segment.session, segment.epoch, *step.verdict)

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
