"""The figures of a trace that was made by hand are those that were put into it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flowspec.tracing.bubbles import bubbles
from flowspec.tracing.spans import CAUSES, Span
from flowspec.tracing.summary import Spread, summarise
from flowspec.tracing.trace import Trace
from tests.tracing.made import NODES, SPANS, made, returned


def idle(trace: Trace, node: str) -> dict[str, float]:
    """Seconds by cause."""
    found = dict.fromkeys(CAUSES, 0.0)
    for span in trace.spans:
        if span.kind == "bubble" and span.node == node:
            found[span.text("cause")] += span.duration
    return {cause: round(seconds, 6) for cause, seconds in found.items() if seconds > 1e-9}


def test_the_figures_are_those_of_the_trace() -> None:
    found = summarise(made())
    assert (found.requests, found.seconds, found.output_tokens, found.verdicts) == (1, 1.0, 3, 2)
    assert found.tokens_per_verdict == 1.5
    assert (found.segments, found.segment_tokens, found.tree_tokens) == (3, 2.0, 7.0)
    assert (found.drafted_tokens, found.wasted_tokens) == (3, 2)
    assert found.clock_error == pytest.approx(0.003)


def test_time_is_useful_as_far_as_its_tokens_are_in_the_output() -> None:
    _, first, second = summarise(made()).nodes
    assert (first.useful, first.wasted, first.idle) == pytest.approx((0.18, 0.10, 0.72))
    assert (second.useful, second.wasted, second.idle) == pytest.approx((0.20, 0.0, 0.80))
    assert (first.segments, first.tokens, first.wasted_tokens) == (3, 6, 2)
    assert (second.segments, second.tokens, second.wasted_tokens, second.mean_tokens) == (3, 4, 0, 2.0)


def test_what_a_stage_waited_for_adds_up_to_its_idle_time() -> None:
    trace = made()
    assert idle(trace, "stage-1") == pytest.approx(
        {"start": 0.05, "overhead": 0.01, "link": 0.04 + 0.02, "miss": 0.20, "held": 0.02 + 0.02, "drafter": 0.06}
        | {"end": 0.30}
    )
    second = idle(trace, "stage-2")
    assert second["upstream"] == pytest.approx(0.10 + 0.08)
    assert second["link"] == pytest.approx(0.04 + 0.05 + 0.02 + 0.02 + 0.03)
    assert sum(second.values()) == pytest.approx(0.80)
    for node in summarise(trace).nodes[1:]:
        assert sum(node.waits.values()) == pytest.approx(node.idle)
        assert node.useful + node.wasted + node.idle == pytest.approx(1.0)


def test_a_verdict_whose_token_had_been_guessed_is_no_miss() -> None:
    spans = [
        returned(0.40, 1, 1, moved=1, guessed=1) if span == returned(0.40, 1, 1, moved=1) else span for span in SPANS
    ]
    found = idle(Trace.of(spans, NODES), "stage-1")
    assert "miss" not in found
    assert found["held"] == pytest.approx(0.24)


def test_reactions_are_counted_from_each_verdict_to_the_next_segment_that_leaves() -> None:
    found = summarise(made())
    assert found.reaction.count == 1
    assert found.reaction.median == pytest.approx(0.10)
    assert found.reaction_from_tail.median == pytest.approx(0.15)


def test_a_spread_is_a_median_and_a_ninetieth_percentile() -> None:
    assert Spread.of([]) == Spread(0, None, None)
    assert Spread.of([float(value) for value in range(1, 21)]) == Spread(20, 10.5, 18.0)


def test_links_count_what_went_over_them() -> None:
    links = {(link.sender, link.receiver): link for link in summarise(made()).links}
    assert list(links) == [("draft", "stage-1"), ("stage-1", "stage-2"), ("stage-2", "draft")]
    assert [link.bytes for link in links.values()] == [320, 3000, 100]
    assert [link.messages for link in links.values()] == [3, 3, 2]
    assert links["draft", "stage-1"].mean_seconds == pytest.approx(0.08 / 3)


def test_features_count_on_their_own_link() -> None:
    extra = Span("draft", "features", 0.8, 0.0, {"sender": "stage-1", "count": 2, "bytes": 512}, "s")
    links = {(link.sender, link.receiver): link for link in summarise(Trace.of([*SPANS, extra], NODES)).links}
    assert (links["stage-1", "draft"].bytes, links["stage-1", "draft"].messages) == (512, 0)


def test_a_trace_without_spans_has_figures_too() -> None:
    found = summarise(Trace((), NODES))
    assert (found.requests, found.seconds, found.tokens_per_verdict) == (0, 0.0, 0.0)
    json.dumps(found.as_values())


def test_two_requests_that_overlap_share_their_idle_time() -> None:
    second = [replace(span, start=span.start + 0.5, session="t") for span in SPANS if span.kind == "request"]
    found = bubbles([*SPANS, *second], NODES)
    last = max(span.end for span in found if span.node == "stage-1")
    assert last == pytest.approx(1.5)
    assert summarise(Trace.of([*SPANS, *second], NODES)).seconds == pytest.approx(1.5)
