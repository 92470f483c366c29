"""Traces of whole pipelines in one process: consistent with themselves and the output, absent when not asked for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from flowspec.drafting.head_files import config_for, new_head, save_head
from flowspec.model.weights import Checkpoint
from flowspec.roles import session_notes, stage_trace
from flowspec.tracing.records import Recorder
from flowspec.tracing.spans import KINDS, Span
from flowspec.tracing.summary import summarise
from flowspec.tracing.trace import Trace
from flowspec.wire.messages import FINAL
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, complete, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
STAGES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("traced") / "llama", layers=6, context=512)


def of(trace: Trace, kind: str, node: str | None = None) -> list[Span]:
    return [span for span in trace.spans if span.kind == kind and node in (None, span.node)]


def numbers(spans: list[Span], name: str = "number") -> list[int]:
    return [span.number(name) for span in spans]


async def traced(running: Running, policy: str, **options: object) -> Trace:
    result = await complete(running, PROMPT, policy, trace=True, **options)
    assert result.trace is not None
    assert result.stats is not None
    assert sum(numbers(of(result.trace, "emitted"), "tokens")) == len(result.token_ids) == result.stats.new_tokens
    assert len(of(result.trace, "chosen")) == result.stats.segments
    assert summarise(result.trace).wasted_tokens == result.stats.drafted - result.stats.accepted
    return result.trace


def assert_consistent(trace: Trace) -> None:
    """What holds for every trace from which nothing is missing."""
    assert trace.metadata["incomplete"] == []
    sent = numbers(sorted(of(trace, "chosen"), key=lambda span: span.number("number")))
    assert sent == list(range(len(sent)))
    for node in trace.nodes[1:]:
        segments = of(trace, "segment", node)
        assert numbers(segments) == sent[: len(segments)]
        busy = sorted([*segments, *of(trace, "bubble", node)], key=lambda span: (span.start, span.end))
        for before, after in pairwise(busy):
            assert before.end <= after.start + 1e-6, (before, after)
        for queued, segment in zip(of(trace, "queued", node), segments, strict=True):
            assert queued.end == pytest.approx(segment.start, abs=1e-9)
    assert len(of(trace, "segment", trace.nodes[1])) == len(sent)
    for span in trace.spans:
        assert set(span.args) == set(KINDS[span.kind].arguments), span
    for span in of(trace, "chosen"):
        assert 0 <= span.number("useful") <= span.number("tokens") <= span.number("waiting")
    figures = summarise(trace)
    for node in figures.nodes[1:]:
        assert node.useful + node.wasted + node.idle == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("policy", ["flowspec", "autoregressive"])
async def test_a_trace_is_consistent_with_itself_and_with_the_output(model: Path, policy: str) -> None:
    async with pipeline(model, STAGES, drafter={"kind": "causal-lm", "model": str(model)}) as running:
        trace = await traced(running, policy)
    assert_consistent(trace)
    assert trace.nodes == ("draft", "stage-1", "stage-2", "stage-3")
    counted = Counter(span.kind for span in trace.spans)
    assert counted["request"] == 1
    assert counted["verdict"] == len([span for span in of(trace, "returned") if span.number("moved") > 0])
    assert (counted["drafted"] > 0) == (policy == "flowspec")
    assert counted["heard"] >= counted["verdict"]
    clocks = trace.metadata["clocks"]
    assert all(clock == {"offset_seconds": 0.0, "error_seconds": 0.0} for clock in clocks.values())


async def test_features_are_seen_on_their_links(model: Path) -> None:
    target, head = Checkpoint(model), model.parent / "head"
    save_head(new_head(config_for("eagle", target, (FINAL,)), target, dtype="float64"), head)
    async with pipeline(model, STAGES, drafter={"kind": "eagle", "model": str(head)}) as running:
        trace = await traced(running, "flowspec")
    assert sum(numbers(of(trace, "features"), "count")) >= len(PROMPT)
    assert {span.text("sender") for span in of(trace, "features")} == {"stage-3"}


async def test_a_request_that_asked_for_none_has_no_trace_and_is_not_noted(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorder] = []

    class Counted(Recorder):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(stage_trace, "Recorder", Counted)
    monkeypatch.setattr(session_notes, "Recorder", Counted)
    async with pipeline(model, STAGES, drafter="ngram") as running:
        plain = await complete(running, PROMPT, "flowspec")
        assert plain.trace is None
        assert made == []
        both = await asyncio.gather(
            complete(running, PROMPT, "flowspec", trace=True), complete(running, PROMPT[::-1], "flowspec")
        )
        assert len(made) == STAGES + 1
    assert both[0].token_ids == plain.token_ids
    assert both[0].trace is not None
    assert_consistent(both[0].trace)
    assert len({span.session for span in both[0].trace.spans if span.session}) == 1
    assert both[1].trace is None


async def test_sessions_at_the_same_time_have_a_trace_each(model: Path) -> None:
    async with pipeline(model, STAGES, drafter="ngram") as running:
        results = await asyncio.gather(
            *(complete(running, PROMPT[: 4 + each], "flowspec", trace=True) for each in range(3))
        )
        assert not running.coordinator._traces.live
    for result in results:
        assert result.trace is not None
        assert_consistent(result.trace)
        assert sum(numbers(of(result.trace, "emitted"), "tokens")) == len(result.token_ids)
    merged = Trace.merged([result.trace for result in results if result.trace is not None])
    for node in merged.nodes[1:]:
        for before, after in pairwise(of(merged, "segment", node)):
            assert before.end <= after.start + 1e-9


async def test_a_long_run_keeps_its_end_and_says_what_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Recorder):
        def __init__(self) -> None:
            super().__init__(16)

    monkeypatch.setattr(stage_trace, "Recorder", Small)
    async with pipeline(model, STAGES, drafter="ngram") as running:
        trace = (await complete(running, PROMPT, "autoregressive", trace=True)).trace
    assert trace is not None
    assert trace.metadata["dropped"]["draft"] == 0
    assert all(trace.metadata["dropped"][node] > 0 for node in trace.nodes[1:])
    assert summarise(trace).dropped > 0
    last = max(numbers(of(trace, "chosen"), "number"))
    assert all(max(numbers(of(trace, "segment", node))) == last for node in trace.nodes[1:])


async def test_what_a_stage_never_sends_is_not_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pipeline(model, STAGES, drafter="ngram", timeouts={"close": 0.5}) as running:
        monkeypatch.setattr(stage_trace.StageTrace, "messages", lambda self, node: iter(()))
        result = await complete(running, PROMPT, "flowspec", trace=True)
        assert not running.coordinator._traces.live
    assert result.trace is not None
    assert result.trace.metadata["incomplete"] == ["stage-1", "stage-2", "stage-3"]
    assert summarise(result.trace).incomplete == ("stage-1", "stage-2", "stage-3")


async def test_clocks_of_other_machines_are_aligned(model: Path) -> None:
    ahead = {1: 1_000 * 10**9, 2: -500 * 10**9}
    async with pipeline(model, STAGES, drafter="ngram") as running:
        for index, offset in ahead.items():
            stage = running.stages[index]
            stage._sessions.clock = lambda offset=offset: time.perf_counter_ns() + offset
        peers = running.coordinator.handshake.peers
        for index in ahead:
            peer = peers[running.stages[index].name]
            assert peer.hello is not None
            object.__setattr__(peer.hello, "host", f"another machine {index}")
        trace = await traced(running, "flowspec", max_new_tokens=48)
    clocks = trace.metadata["clocks"]
    assert clocks["stage-1"] == {"offset_seconds": 0.0, "error_seconds": 0.0}
    for name, offset in (("stage-2", 1000.0), ("stage-3", -500.0)):
        assert 0 < clocks[name]["error_seconds"] < 1.0
        assert abs(clocks[name]["offset_seconds"] - offset) <= clocks[name]["error_seconds"]
        for segment in of(trace, "segment", name):
            assert -1.0 < segment.start < of(trace, "request")[0].end + 1.0
    assert_consistent(trace)


async def test_a_cancelled_request_leaves_nothing_behind(model: Path) -> None:
    async with pipeline(model, STAGES, drafter="ngram") as running:
        stream = running.client.stream(
            prompt_token_ids=PROMPT, max_new_tokens=200, ignore_eos=True, policy="flowspec", trace=True
        )
        async for _ in stream:
            break
        again = await complete(running, PROMPT, "flowspec", trace=True)
        assert again.trace is not None
        # The pipe is in order: whatever was noted of the first has come before that of the second.
        assert not running.coordinator._traces.live
        assert all(stage._sessions.traced == 0 for stage in running.stages)
    assert stream.generation.trace is None
