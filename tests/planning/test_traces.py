"""Traces of simulated pipes: they say what those of real ones say, and add up."""

from __future__ import annotations

import pytest

from flowspec.planning.simulator import simulate
from flowspec.schedule.policies import POLICIES
from flowspec.tracing.spans import KINDS
from flowspec.tracing.summary import summarise
from flowspec.tracing.trace import Trace
from tests.planning.pipes import LANGUAGE, even


def traced(policy: str, sessions: int = 1) -> Trace:
    result = simulate(even(3), policy, language=LANGUAGE, tokens=40, sessions=sessions, trace=True)
    assert result.trace is not None
    return result.trace


def assert_adds_up(trace: Trace) -> None:
    for node in summarise(trace).nodes[1:]:
        assert node.useful + node.wasted + node.idle == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_simulated_trace_says_what_a_real_one_does(policy: str) -> None:
    trace = traced(policy)
    for span in trace.spans:
        assert set(span.args) == set(KINDS[span.kind].arguments), span
    chosen = [span for span in trace.spans if span.kind == "chosen"]
    for span in chosen:
        assert 0 <= span.number("useful") <= span.number("tokens") <= span.number("waiting")
        if not span.number("prompt"):
            assert span.number("flying") + span.number("waiting") == span.number("tree")
    verdicts = [span for span in trace.spans if span.kind == "returned" and span.number("moved") > 0]
    assert any(span.number("guessed") for span in verdicts) == (policy != "autoregressive")
    assert summarise(trace).output_tokens == 40
    assert_adds_up(trace)


def test_traces_of_several_policies_follow_one_another() -> None:
    parts = {policy: traced(policy, sessions=2) for policy in ("autoregressive", "chunked", "flowspec")}
    trace = Trace.in_turn(parts)
    assert_adds_up(trace)
    found, alone = summarise(trace), {policy: summarise(part) for policy, part in parts.items()}
    assert found.requests == 6
    assert found.seconds == pytest.approx(sum(part.seconds for part in alone.values()))
    assert found.output_tokens == sum(part.output_tokens for part in alone.values())
    for policy, part in alone.items():
        again = summarise(trace.only(policy))
        assert [rounded(node.waits) for node in again.nodes] == [rounded(node.waits) for node in part.nodes]
        assert (again.segments, again.verdicts, again.wasted_tokens) == (
            part.segments,
            part.verdicts,
            part.wasted_tokens,
        )


def rounded(waits: dict[str, float]) -> dict[str, float]:
    return {cause: round(share, 6) + 0.0 for cause, share in waits.items()}
