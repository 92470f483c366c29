"""When a stage had nothing to do while a request lived, and what it waited for.

The time before a segment is cut up by where that segment was meanwhile, so that the pieces add up to the whole:

    start      the first segment of a request had not left the draft node yet
    miss       it begins with a token that nobody had guessed, and the verdict that told it had not come
    drafter    the drafter was at work meanwhile
    held       the policy had guesses and did not send them: the window was full, or they were not worth it
    upstream   it waited or was computed at a stage further up
    link       it was on its way between two nodes
    overhead   it waited at the draft node for the pipe, or here for the compute thread
    end        nothing came any more
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from flowspec.tracing.spans import Span
from flowspec.tracing.windows import Windows

SHORTEST = 1e-6
"""Seconds below which a pause is none."""

Piece = tuple[float, float, str]


class Journeys:
    """Where each segment was at any time, from the spans of a trace."""

    def __init__(self, spans: Iterable[Span], nodes: Sequence[str]) -> None:
        self._nodes = nodes
        self._chosen: dict[int, Span] = {}
        self._hops: dict[tuple[int, str], Span] = {}
        self._moved: dict[str, list[Span]] = {}
        self._steps: dict[str, list[Span]] = {}
        for span in spans:
            match span.kind:
                case "chosen":
                    self._chosen[span.number("ticket")] = span
                case "transfer":
                    self._hops[span.number("ticket"), span.node] = span
                case "returned" if span.number("moved") > 0:
                    self._moved.setdefault(span.session, []).append(span)
                case "drafted":
                    self._steps.setdefault(span.session, []).append(span)
        for verdicts in self._moved.values():
            verdicts.sort(key=lambda verdict: verdict.start)
        for steps in self._steps.values():
            steps.sort(key=lambda step: step.start)

    def before(self, stage: int, ticket: int, start: float, end: float) -> Iterator[Piece]:
        """(from, to, cause) of the time from `start` to `end`, when stage number `stage` (from 1) began `ticket`."""
        at = start
        for until, cause in self._way(stage, ticket):
            if until > at:
                upto = min(until, end)
                yield from self._at_the_draft_node(ticket, at, upto) if cause == "draft" else [(at, upto, cause)]
                at = upto
            if at >= end:
                return
        yield at, end, "overhead"

    def _way(self, stage: int, ticket: int) -> Iterator[tuple[float, str]]:
        """Pairs (until, cause), in order of time."""
        chosen = self._chosen.get(ticket)
        if chosen is not None:
            yield chosen.start, "draft"
        for index, node in enumerate(self._nodes[:stage]):
            hop = self._hops.get((ticket, node))
            if hop is None:
                continue
            yield hop.start, "overhead" if index == 0 else "upstream"
            yield hop.end, "link"

    def _at_the_draft_node(self, ticket: int, start: float, end: float) -> Iterator[Piece]:
        """Why the segment was not chosen any earlier."""
        chosen = self._chosen[ticket]
        if chosen.number("number") == 0:
            yield start, end, "start"
            return
        if chosen.number("root") > 0 and chosen.number("prompt") <= 0:
            moved = self._moved.get(chosen.session, [])
            last = bisect_right(moved, chosen.start, key=lambda verdict: verdict.start) - 1
            if last >= 0 and moved[last].start > start and moved[last].number("guessed") <= 0:
                came = min(moved[last].start, end)
                yield start, came, "miss"
                start = came
        yield from self._by_the_drafter(chosen.session, start, end)

    def _by_the_drafter(self, session: str, start: float, end: float) -> Iterator[Piece]:
        steps = self._steps.get(session, [])
        # At most one step of a session is out at a time, so they end in the order in which they began.
        first = bisect_left(steps, start, key=lambda step: step.end)
        for step in steps[first:]:
            if step.start >= end or start >= end:
                break
            if step.start > start:
                yield start, step.start, "held"
            begun, done = max(step.start, start), min(step.end, end)
            if done > begun:
                yield begun, done, "drafter"
                start = done
        if end > start:
            yield start, end, "held"


def bubbles(spans: Sequence[Span], nodes: Sequence[str]) -> list[Span]:
    """The bubbles of every stage among `nodes` (the draft node first, then the stages in pipe order).

    What `spans` holds must be of one pipe; a stage is idle when it computes for none of these sessions.
    """
    windows = Windows(span for span in spans if span.kind == "request")
    journeys = Journeys(spans, nodes)
    work: dict[str, list[Span]] = {node: [] for node in nodes[1:]}
    for span in spans:
        if span.kind == "segment" and span.node in work:
            work[span.node].append(span)
    found: list[Span] = []
    for stage, node in enumerate(nodes[1:], start=1):
        segments = sorted(work[node], key=lambda span: span.start)
        for begin, end in windows:
            inside = [span for span in segments if begin < span.end and span.start < end]
            found += _of_one(node, stage, inside, (begin, end), journeys)
    return found


def _of_one(
    node: str, stage: int, segments: list[Span], window: tuple[float, float], journeys: Journeys
) -> Iterator[Span]:
    free_since, end = window
    for segment in segments:
        if segment.start - free_since > SHORTEST:
            ticket = segment.number("ticket")
            for start, until, cause in _joined(journeys.before(stage, ticket, free_since, segment.start)):
                yield Span(node, "bubble", start, until - start, {"cause": cause, "ticket": ticket}, segment.session)
        free_since = max(free_since, segment.end)
    if end - free_since > SHORTEST:
        yield Span(node, "bubble", free_since, end - free_since, {"cause": "end", "ticket": -1})


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours of one cause as one."""
    held: Piece | None = None
    for start, end, cause in pieces:
        if held is not None and held[2] == cause:
            held = held[0], end, cause
        else:
            if held is not None:
                yield held
            held = start, end, cause
    if held is not None:
        yield held
