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
async def test_the_tail_publishes_what_moved_and_gives_the_ticket_back(step: Step, published: list[Message]) -> None:
    log: list[Message] = []
    departure = Departure("tail", None, Thread(log), Thread(log), FeatureOutboxes())
    assert departure.at_once(SEGMENT, step) == 2000
    assert log == [RETURNED, *published]
    log.clear()
    assert await departure.send(SEGMENT, step) == 1000
    assert log == [RETURNED, *published]


@pytest.mark.parametrize("loop_alone", ["verdicts", "back"])
def test_the_tail_leaves_all_of_it_to_the_loop_where_one_channel_is_for_the_loop_alone(loop_alone: str) -> None:
    log: list[Message] = []
    channels = {"verdicts": Thread(log), "back": Thread(log), loop_alone: Loop(log)}
    departure = Departure("tail", None, channels["verdicts"], channels["back"], FeatureOutboxes())
    assert departure.at_once(SEGMENT, MOVED) is None
    assert log == []


async def test_a_ticket_that_finds_no_room_goes_back_from_the_loop() -> None:
    log: list[Message] = []
    back = Thread(log)
    back.full = True
    departure = Departure("tail", None, Thread(log), back, FeatureOutboxes())
    assert departure.at_once(SEGMENT, MOVED) is None
    await departure.send(SEGMENT, MOVED)
    assert log == [RETURNED, VERDICT]


async def test_from_the_loop_features_go_before_the_ticket() -> None:
    log: list[Message] = []
    outboxes = FeatureOutboxes()
    outboxes.open(FeatureOutbox("tail", "s", 1, (8,)))(0, (torch.ones(2, 8),))
    await asyncio.sleep(0)
    await Departure("tail", None, Loop(log), Loop(log), outboxes).send(SEGMENT, MOVED)
    assert log == [Features("tail", "s", 1, 0, 2, (8,)), RETURNED, VERDICT]
