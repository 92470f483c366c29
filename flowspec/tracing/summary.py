"""The figures of a trace: who was busy with what, what the pipe waited for, what the links carried."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from flowspec.tracing.spans import CAUSES, Span
from flowspec.tracing.trace import Trace
from flowspec.tracing.windows import Windows


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One node. Shares are of the time that requests lived; `useful`, `wasted` and `idle` of a stage add up to 1.

    Useful is the time for tokens that are in the output, or in the prompt: a segment's time is split by tokens. The
    draft node's share is that of its drafter, of which no part can be told to be wasted.
    """

    node: str
    segments: int
    mean_tokens: float
    """Tokens computed per segment, those without any left out."""
    tokens: int
    wasted_tokens: int
    useful: float
    wasted: float
    idle: float
    waits: dict[str, float]
    """Idle share by cause (`flowspec.tracing.spans.CAUSES`)."""


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """One link, in one direction. `mean_seconds` is from leaving to arrival."""

    sender: str
    receiver: str
    messages: int
    bytes: int
    mean_seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile of some times in seconds; None of both where there were none."""

    count: int
    median: float | None
    p90: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(0, None, None)
        ordered = sorted(values)
        return cls(len(ordered), median(ordered), ordered[-(-9 * len(ordered) // 10) - 1])


@dataclass(frozen=True, slots=True)
class Summary:
    """What `flowspec trace summary` prints. Times in seconds."""

    requests: int
    seconds: float
    """That requests lived."""
    output_tokens: int
    verdicts: int
    """Those that moved the frontier."""
    tokens_per_verdict: float
    segments: int
    segment_tokens: float
    """Mean tokens of a segment when it leaves the draft node, prompt chunks left out."""
    tree_tokens: float
    """Mean live draft tokens in the tree at that moment."""
    drafted_tokens: int
    """Guesses sent: neither prompt nor certain when they left."""
    wasted_tokens: int
    """Those of them that are not in the output."""
    reaction: Spread
    """From a verdict's arrival at the draft node to the next segment that leaves."""
    reaction_from_tail: Spread
    """The same from the moment when the tail publishes the verdict."""
    nodes: tuple[NodeFigures, ...]
    links: tuple[LinkFigures, ...]
    clock_error: float
    """Most seconds by which times of two nodes may be out of step with each other."""
    dropped: int
    """Records that did not fit into a node's memory: the beginning of the run is missing there."""
    incomplete: tuple[str, ...]
    """Nodes whose part never came, or not to its end."""

    def as_values(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarise(trace: Trace) -> Summary:
    """The figures of a trace, be it measured or simulated."""
    by_kind: dict[str, list[Span]] = {}
    for span in trace.spans:
        by_kind.setdefault(span.kind, []).append(span)
    requests = by_kind.get("request", [])
    lived = Windows(requests)
    chosen = by_kind.get("chosen", [])
    guesses = [span for span in chosen if span.number("prompt") <= 0]
    drafted = sum(span.number("tokens") - span.number("root") for span in guesses)
    moved = [span for span in by_kind.get("returned", []) if span.number("moved") > 0]
    output = sum(span.number("tokens") for span in by_kind.get("emitted", []))
    useful = {span.number("ticket"): span.number("useful") for span in chosen}
    leaving = [span for span in by_kind.get("transfer", []) if span.node in trace.nodes[:1]] or chosen
    clocks = trace.metadata.get("clocks", {})
    errors = sorted((float(clock.get("error_seconds", 0.0)) for clock in clocks.values()), reverse=True)
    return Summary(
        requests=len(requests),
        seconds=lived.seconds,
        output_tokens=output,
        verdicts=len(moved),
        tokens_per_verdict=output / len(moved) if moved else 0.0,
        segments=len(chosen),
        segment_tokens=_mean([span.number("tokens") for span in guesses]),
        tree_tokens=_mean([span.number("tree") for span in guesses]),
        drafted_tokens=drafted,
        wasted_tokens=sum(span.number("tokens") - span.number("useful") for span in guesses),
        reaction=_reaction(moved, leaving),
        reaction_from_tail=_reaction(by_kind.get("verdict", []), leaving),
        nodes=(
            *(_drafter(node, by_kind.get("drafted", []), lived) for node in trace.nodes[:1]),
            *(_stage(node, trace.spans, useful, lived) for node in trace.nodes[1:]),
        ),
        links=_links(trace, by_kind),
        clock_error=sum(errors[:2]),
        dropped=sum(trace.metadata.get("dropped", {}).values()),
        incomplete=tuple(trace.metadata.get("incomplete", ())),
    )


def _drafter(node: str, steps: list[Span], lived: Windows) -> NodeFigures:
    seconds = sum(lived.within(*busy) for busy in Windows(steps))
    busy = seconds / lived.seconds if lived.seconds else 0.0
    expanded = [step.number("expanded") for step in steps]
    return NodeFigures(node, len(steps), _mean(expanded), sum(expanded), 0, busy, 0.0, 1.0 - busy, {})


def _stage(node: str, spans: Sequence[Span], useful: dict[int, int], lived: Windows) -> NodeFigures:
    segments = [span for span in spans if span.node == node and span.kind == "segment"]
    idle = dict.fromkeys(CAUSES, 0.0)
    for span in spans:
        if span.node == node and span.kind == "bubble":
            idle[span.text("cause")] = idle.get(span.text("cause"), 0.0) + span.duration
    good = bad = 0.0
    computed = gained = 0
    for span in segments:
        tokens = span.number("computed")
        kept = min(tokens, useful.get(span.number("ticket"), 0))
        share = kept / tokens if tokens > 0 else 0.0
        seconds = lived.within(span.start, span.end)
        good += share * seconds
        bad += (1 - share) * seconds
        computed += tokens
        gained += kept
    scale = 1 / lived.seconds if lived.seconds else 0.0
    return NodeFigures(
        node=node,
        segments=len(segments),
        mean_tokens=_mean([span.number("computed") for span in segments if span.number("computed") > 0]),
        tokens=computed,
        wasted_tokens=computed - gained,
        useful=good * scale,
        wasted=bad * scale,
        idle=sum(idle.values()) * scale,
        waits={cause: seconds * scale for cause, seconds in idle.items()},
    )


def _reaction(verdicts: list[Span], leaving: list[Span]) -> Spread:
    """From each verdict to the next segment of its session that leaves; the last one of a session has none."""
    departures: dict[str, list[float]] = {}
    for span in leaving:
        departures.setdefault(span.session, []).append(span.start)
    for times in departures.values():
        times.sort()
    found = []
    for verdict in verdicts:
        mine = departures.get(verdict.session, [])
        after = bisect_left(mine, verdict.start)
        if after < len(mine):
            found.append(mine[after] - verdict.start)
    return Spread.of(found)


def _links(trace: Trace, by_kind: dict[str, list[Span]]) -> tuple[LinkFigures, ...]:
    """All links in pipe order; what stages send of hidden states for the drafter counts as bytes of their way back."""
    seconds: dict[tuple[str, str], list[float]] = {}
    carried: dict[tuple[str, str], int] = {}
    for span in by_kind.get("transfer", []):
        link = span.node, span.text("to")
        seconds.setdefault(link, []).append(span.duration)
        carried[link] = carried.get(link, 0) + span.number("bytes")
    for span in by_kind.get("features", []):
        link = span.text("sender"), span.node
        seconds.setdefault(link, [])
        carried[link] = carried.get(link, 0) + span.number("bytes")
    order = {node: place for place, node in enumerate(trace.nodes)}
    links = sorted(carried, key=lambda link: (order.get(link[0], len(order)), -order.get(link[1], 0)))
    return tuple(
        LinkFigures(*link, messages=len(seconds[link]), bytes=carried[link], mean_seconds=_mean(seconds[link]))
        for link in links
    )


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else 0.0
