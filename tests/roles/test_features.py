"""Features between acceptance and the drafter: collecting at a stage, waiting in its outbox, putting together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.model.block import LayerBlock
from flowspec.roles.feature_desk import FeatureDesk
from flowspec.roles.feature_outbox import RESEND_SEGMENTS, FeatureOutbox
from flowspec.roles.session_table import SessionTable
from flowspec.roles.stage_session import StageSession, bytes_limit
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.wire.messages import (
    FINAL,
    DraftTokens,
    Features,
    Open,
    RosterEntry,
    Segment,
    Verdict,
)
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint
from tests.model.running import chain
from tests.pipeline.reading import Teller

PROMPT = [5, 9, 33, 40, 7, 12]
HIDDEN = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("features") / "llama", layers=6)


def opened(taps: tuple[int, ...], row_limit: int = 100) -> Open:
    return Open("s", 0, row_limit, SamplingParameters(), taps)


def segment(number: int, draft: DraftTokens, features: int = 0) -> Segment:
    return Segment("s", 0, number, number + 1, len(PROMPT) - 1, draft, (RosterEntry("s", 0, None, None, features),))


class Collected:
    """What a session collected."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, tuple[torch.Tensor, ...]]] = []

    def __call__(self, first: int, tensors: tuple[torch.Tensor, ...]) -> None:
        assert first == self.count
        self.parts.append((first, tensors))

    @property
    def count(self) -> int:
        return sum(len(tensors[0]) for _, tensors in self.parts)

    def features(self) -> torch.Tensor:
        return torch.cat([torch.cat(tensors, 1) for _, tensors in self.parts])


# ---- collecting ------------------------------------------------------------------------------------------------------


def middle(model: Path) -> tuple[StageSession, Collected, Callable[[list[int]], torch.Tensor]]:
    """Layers 2-4 of six, with the taps 2 and 4; the last makes their input of token ids in one chain."""
    first = LayerBlock.load(model, 0, 2, dtype="float64")
    block = LayerBlock.load(model, 2, 5, dtype="float64")
    collected = Collected()
    session = StageSession(opened((4, 0, 2, FINAL, 6)), block, EmulatedDevice(), collected)
    assert session.taps == (4, 2)
    cache = first.new_cache(100)

    def feed(tokens: list[int]) -> torch.Tensor:
        draft = chain(tokens, cache.rows)
        output = first.forward(torch.tensor(tokens), cache, cache.begin(draft))
        cache.commit(cache.rows - 1)
        assert output is not None
        return output

    return session, collected, feed


def test_a_verdict_is_followed_between_two_layers_of_a_running_forward(model: Path) -> None:
    session, collected, feed = middle(model)
    tokens = [*PROMPT, 20, 21, 22, 23]
    session.step(segment(0, chain(PROMPT)), feed(PROMPT))
    assert collected.count == len(PROMPT)
    session.step(segment(1, chain(tokens[6:9], 6)), feed(tokens[6:9]))
    assert collected.count == len(PROMPT)
    counts: list[int] = []
    layers = session._block._layers

    def hear(*_: Any) -> None:
        session.note(7, 22)

    hooks = [
        layers[0].register_forward_pre_hook(hear),
        layers[1].register_forward_pre_hook(lambda *_: counts.append(collected.count)),
    ]
    session.step(segment(2, chain(tokens[9:], 9)), feed(tokens[9:]))
    for hook in hooks:
        hook.remove()
    assert counts == [8]
    session.note(9, 1)
    session.collect()
    assert collected.count == 10
    expected = Teller(model).features(tokens, (4, 2))
    torch.testing.assert_close(collected.features(), expected, rtol=1e-9, atol=1e-9)


def test_rows_of_a_rejected_branch_are_not_collected(model: Path) -> None:
    session, collected, feed = middle(model)
    session.step(segment(0, chain(PROMPT)), feed(PROMPT))
    # Two children of the prompt's end; the second is right. Their states are those of chains of their own.
    hidden = feed([30, 31])
    draft = DraftTokens((6, 7, 8), (5, 5, 7), (30, 50, 51))
    session.step(segment(1, draft), torch.cat([hidden[:1], hidden]))
    session.note(7, 51)
    session.collect()
    session.collect()
    assert [(first, len(tensors[0])) for first, tensors in collected.parts] == [(0, 6), (6, 1)]
    assert torch.equal(collected.parts[1][1][1], hidden[:1])
    session.free()
    session.collect()


async def test_an_idle_stage_collects_as_soon_as_it_hears(model: Path) -> None:
    _, _, feed = middle(model)
    block = LayerBlock.load(model, 2, 5, dtype="float64")
    compute = ComputeThread("compute")
    try:
        table = SessionTable("stage-2", block, compute, EmulatedDevice(), 1 << 30)
        assert await table.open(opened((3,))) == ""
        session = table.find("s", 0)
        assert session is not None
        await compute.run(session.step, segment(0, chain(PROMPT)), feed(PROMPT))
        await compute.run(session.step, segment(1, chain([20, 21], 6)), feed([20, 21]))
        at_first = table.outboxes.bytes_held
        table.note(Verdict("s", 0, 6, 21))
        table.note(Verdict("s", 0, 6, 21))
        await compute.run(int)
        assert at_first == 6 * block.hidden_size * 8
        assert table.outboxes.bytes_held == 7 * block.hidden_size * 8
        table.note_roster((RosterEntry("s", 0, 7, 1, 7),))
        await compute.run(int)
        assert table.outboxes.bytes_held == block.hidden_size * 8
        await table.free_all()
        assert table.outboxes.bytes_held == 0
    finally:
        await compute.close()


async def test_nobody_reads_any_more(model: Path) -> None:
    _, _, feed = middle(model)
    block = LayerBlock.load(model, 2, 5, dtype="float64")
    compute = ComputeThread("compute")
    try:
        table = SessionTable("stage-2", block, compute, EmulatedDevice(), 1 << 30)
        await table.open(opened((3,), row_limit=50))
        session = table.find("s", 0)
        assert session is not None
        await compute.run(session.step, segment(0, chain(PROMPT)), feed(PROMPT))
        table.note_roster((RosterEntry("s", 0, None, None, 50),))
        assert table.outboxes.bytes_held == 0
        await compute.run(session.step, segment(1, chain([20, 21], 6)), feed([20, 21]))
        table.note(Verdict("s", 0, 7, 1))
        await compute.run(session.step, segment(2, chain([22], 8)), feed([22]))
        assert table.outboxes.bytes_held == 0
        await table.free_all()
    finally:
        await compute.close()


@pytest.mark.parametrize(
    ("taps", "memory", "says"),
    [((7,), 1 << 30, "tap 7"), ((0, FINAL, -2), 1 << 30, "tap -2"), ((3,), None, "limits.memory")],
)
async def test_a_stage_refuses_what_it_cannot_keep(
    model: Path, taps: tuple[int, ...], memory: int | None, says: str
) -> None:
    block = LayerBlock.load(model, 2, 5, dtype="float64")
    compute = ComputeThread("compute")
    try:
        # Without its features the session would just fit.
        table = SessionTable("stage-2", block, compute, EmulatedDevice(), memory or bytes_limit(opened(()), block))
        assert says in await table.open(opened(taps))
        assert await table.open(opened(())) == ""
        await table.free_all()
    finally:
        await compute.close()


# ---- waiting ---------------------------------------------------------------------------------------------------------


def part(first: int, count: int, width: int = HIDDEN) -> torch.Tensor:
    return (torch.arange(first, first + count)[:, None] + torch.arange(width) / 10).double()


def firsts(outbox: FeatureOutbox) -> list[int]:
    return [message.first for message, _ in outbox.take_due()]


def test_an_outbox_keeps_what_is_not_acknowledged_and_sends_it_again() -> None:
    outbox = FeatureOutbox("stage-1", "s", 0, (1,))
    outbox.put(0, (part(0, 4),))
    outbox.put(4, (part(4, 2),))
    assert firsts(outbox) == [0, 4]
    for _ in range(RESEND_SEGMENTS - 1):
        outbox.hear(0)
    assert not outbox.due
    outbox.hear(4)
    assert outbox.bytes_held == 2 * HIDDEN * 8
    for _ in range(RESEND_SEGMENTS):
        assert not outbox.due
        outbox.hear(4)
    outbox.put(6, (part(6, 1),))
    assert firsts(outbox) == [4, 6]
    # It is less and less eager, until something moves again.
    for _ in range(2 * RESEND_SEGMENTS - 1):
        outbox.hear(4)
    assert not outbox.due
    outbox.hear(3)
    assert firsts(outbox) == [4, 6]
    outbox.hear(7)
    assert outbox.bytes_held == 0
    assert not outbox.due
    for _ in range(10 * RESEND_SEGMENTS):
        outbox.hear(7)
    assert not outbox.due


# ---- putting together ------------------------------------------------------------------------------------------------


class Delivered:
    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def __call__(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        assert (session, epoch) == ("s", 0)
        assert first == sum(map(len, self.parts))
        self.parts.append(features)


def sent(first: int, count: int, taps: tuple[int, ...], epoch: int = 0) -> tuple[Features, tuple[torch.Tensor, ...]]:
    return Features("stage", "s", epoch, first, count, taps), tuple(part(first, count) + 100 * tap for tap in taps)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_doubled_lost_or_late_nothing_is_missing_or_twice(data: st.DataObject) -> None:
    """Stages send parts that may be lost and come again from the acknowledgement on; stages interleave at will."""
    stages = {0: (5, 1), 1: (3,)}
    taps = data.draw(st.sampled_from([(1, 3, 5), (3, 5, 1, 3)]))
    total = data.draw(st.integers(1, 12))
    delivered = Delivered()
    desk = FeatureDesk(HIDDEN, delivered)
    desk.open("s", 0, taps, 20)

    def acknowledged() -> int:
        return desk.acknowledge((RosterEntry("s", 0),))[0].features

    for _ in range(data.draw(st.integers(0, 40))):
        stage = data.draw(st.sampled_from([0, 1]))
        first = data.draw(st.integers(0, total - 1))
        count = data.draw(st.integers(1, total - first))
        before = acknowledged()
        desk.hear(*sent(first, count, stages[stage], epoch=data.draw(st.sampled_from([0, 0, 0, 1, -1]))))
        assert acknowledged() >= before
        assert sum(map(len, delivered.parts)) == acknowledged()
    for seen in stages.values():
        desk.hear(*sent(0, total, seen))
    assert acknowledged() == total
    expected = torch.cat([part(0, total) + 100 * tap for tap in taps], 1)
    assert torch.equal(torch.cat(delivered.parts), expected)


MALFORMED: list[tuple[Features, tuple[torch.Tensor, ...]]] = [
    (Features("bad", "s", 0, 0, 2, (1,)), (part(0, 3),)),
    (Features("bad", "s", 0, 0, 2, (1,)), (part(0, 2, HIDDEN + 1),)),
    (Features("bad", "s", 0, 0, 2, (1,)), (part(0, 2).long(),)),
    (Features("bad", "s", 0, 0, 2, (1,)), ()),
    (Features("bad", "s", 0, 0, 2, (1, 1)), (part(0, 2), part(0, 2))),
    (Features("bad", "s", 0, 0, 2, (2,)), (part(0, 2),)),
    (Features("bad", "s", 0, 0, 2, ()), ()),
    (Features("bad", "s", 0, -1, 2, (1,)), (part(0, 2),)),
    (Features("bad", "s", 0, 0, 0, (1,)), (part(0, 0),)),
    (Features("bad", "s", 0, 19, 2, (1,)), (part(0, 2),)),
    (Features("bad", "s", 0, 2**62, 2**62, (1,)), (part(0, 2),)),
]


def test_malformed_features_are_dropped_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    delivered = Delivered()
    desk = FeatureDesk(HIDDEN, delivered)
    desk.open("s", 0, (1,), 20)
    with caplog.at_level(logging.WARNING):
        for message, tensors in MALFORMED:
            desk.hear(message, tensors)
    assert len(caplog.records) == 1
    assert delivered.parts == []
    desk.hear(*sent(0, 2, (1,)))
    assert sum(map(len, delivered.parts)) == 2


def test_an_abandoned_session_is_acknowledged_as_a_whole() -> None:
    desk = FeatureDesk(HIDDEN, Delivered())
    desk.open("s", 0, (1, 2), 20)
    desk.open("t", 0, (), 20)
    desk.hear(*sent(0, 2, (1,)))
    desk.abandon("s")
    roster = desk.acknowledge((RosterEntry("s", 0), RosterEntry("t", 0), RosterEntry("s", 1)))
    assert [entry.features for entry in roster] == [20, 0, 0]
    desk.hear(*sent(2, 2, (1, 2)))
    desk.close("s")
    assert desk.acknowledge((RosterEntry("s", 0),))[0].features == 0


def test_a_new_epoch_begins_at_the_first_position() -> None:
    given: list[tuple[int, int]] = []
    desk = FeatureDesk(HIDDEN, lambda _, epoch, first, features: given.append((epoch, first)))
    desk.open("s", 0, (1,), 20)
    desk.hear(*sent(0, 2, (1,)))
    desk.open("s", 1, (1,), 20)
    desk.hear(*sent(2, 2, (1,)))
    desk.hear(*sent(0, 2, (1,), epoch=1))
    assert given == [(0, 0), (1, 0)]
