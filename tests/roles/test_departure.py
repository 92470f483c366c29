"""How a segment leaves a stage: from the compute thread what can go at once, all else from the loop, the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from flowspec.roles.departure import Departure
from flowspec.roles.feature_outbox import FeatureOutbox, FeatureOutboxes
from flowspec.roles.stage_session import Step
from flowspec.wire.messages import DraftTokens, Features, Message, Returned, RosterEntry, Segment, Verdict

DRAFT = DraftTokens((3, 4), (2, 3), (7, 8))
SEGMENT = Segment("s", 1, number=4, ticket=9, decree=2, draft=DRAFT, roster=(RosterEntry("s", 1),), carried_bytes=100)
KEPT = Step(DraftTokens((3,), (2,), (7,)), torch.ones(1, 8), 2)
MOVED = Step(DraftTokens(), None, 2, (3, 11), moved=True)
STILL = Step(DraftTokens(), None, 2, (3, 11))
VERDICT = Verdict("s", 1, 3, 11)
RETURNED = Returned("tail", 9, "s", 1, 4, 3, 11, 2, 100)


class Loop:
    """A sender for the loop alone."""

    def __init__(self, log: list[Message]) -> None:
        self.log = log

    async def send(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int:
        self.log.append(message)
        return 1000 + len(tensors)

    def statistics(self) -> Any:
        raise NotImplementedError


class Thread(Loop):
    """One that threads may use too; `full` refuses them."""

    full = False

    def send_from_thread(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int | None:
        if self.full:
            return None
        self.log.append(message)
        return 2000 + len(tensors)


async def test_a_stage_passes_on_what_is_left_and_counts_its_bytes() -> None:
    log: list[Message] = []
    for kind, size in ((Loop, None), (Thread, 2001)):
        departure = Departure("stage-1", kind(log), None, Thread([]), FeatureOutboxes())
        assert departure.at_once(SEGMENT, KEPT) == size
        assert await departure.send(SEGMENT, KEPT) == 1001
    assert len(log) == 3
    for message in log:
        assert isinstance(message, Segment)
        assert message.draft == KEPT.draft
        assert message.carried_bytes == 100 + 8 * 4
        assert (message.number, message.ticket, message.decree) == (4, 9, 2)


@pytest.mark.parametrize(("step", "published"), [(MOVED, [VERDICT]), (STILL, [])])
async def test_the_tail_gives_the_ticket_back_and_then_publishes_what_moved(
    step: Step, published: list[Message]
) -> None:
    log: list[Message] = []
    for kind, size in ((Loop, None), (Thread, 2000)):
        departure = Departure("tail", None, Loop(log), kind(log), FeatureOutboxes())
        assert departure.at_once(SEGMENT, step) == size
        if size is None:
            assert await departure.send(SEGMENT, step) == 1000
        await departure.publish(SEGMENT, step)
        assert log == [RETURNED, *published]
        log.clear()


async def test_a_ticket_that_finds_no_room_goes_back_from_the_loop() -> None:
    log: list[Message] = []
    back = Thread(log)
    back.full = True
    departure = Departure("tail", None, Loop(log), back, FeatureOutboxes())
    assert departure.at_once(SEGMENT, MOVED) is None
    await departure.send(SEGMENT, MOVED)
    assert log == [RETURNED]


async def test_from_the_loop_features_go_before_the_ticket() -> None:
    log: list[Message] = []
    outboxes = FeatureOutboxes()
    outboxes.open(FeatureOutbox("tail", "s", 1, (8,)))(0, (torch.ones(2, 8),))
    await asyncio.sleep(0)
    await Departure("tail", None, Loop([]), Loop(log), outboxes).send(SEGMENT, MOVED)
    assert log == [Features("tail", "s", 1, 0, 2, (8,)), RETURNED]


async def test_a_stage_that_is_not_the_tail_publishes_nothing() -> None:
    log: list[Message] = []
    await Departure("stage-1", Loop(log), None, Loop(log), FeatureOutboxes()).publish(SEGMENT, MOVED)
    assert log == []
