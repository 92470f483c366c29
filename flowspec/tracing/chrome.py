"""Spans <-> events of Chrome's trace format: which process, which track, which name, which arrow.

One process a node, one for all links; a track for each kind of work. What overlaps gets a lane of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flowspec.tracing.spans import KINDS, Span, Value

Event = dict[str, Any]

LINKS = "links"
MARK_MICROSECONDS = 1.0
"""Width of an instant that arrows begin or end at: an arrow needs something to hold on to."""

ARROWS = {"returned": "root moved", "heard": "heard"}
"""Kinds to which an arrow leads from the verdict at the tail."""


def events_of(spans: Sequence[Span], nodes: Sequence[str]) -> Iterator[Event]:
    """The events of a whole trace, names of processes and tracks first."""
    tracks = Tracks(nodes)
    ordered = sorted(spans, key=lambda span: span.start)
    placed = [(span, *tracks.place(span)) for span in ordered]
    yield from tracks.names()
    verdicts = {
        (span.session, span.number("frontier")): (span, pid, tid) for span, pid, tid in placed if span.kind == "verdict"
    }
    arrows = 0
    for span, pid, tid in placed:
        kind = KINDS[span.kind]
        event: Event = {
            "name": title(span),
            "cat": span.kind,
            "ph": "X",
            "ts": _microseconds(span.start),
            "dur": MARK_MICROSECONDS if kind.instant else _microseconds(span.duration),
            "pid": pid,
            "tid": tid,
            "args": {"node": span.node, "session": span.session, **span.args},
        }
        yield event
        origin = verdicts.get((span.session, span.number("frontier"))) if span.kind in ARROWS else None
        if origin is not None and span.number("moved") != 0 and origin[0].start <= span.start:
            arrows += 1
            yield from _arrow(arrows, ARROWS[span.kind], origin, (span, pid, tid))


def _arrow(number: int, name: str, origin: tuple[Span, int, int], target: tuple[Span, int, int]) -> Iterator[Event]:
    for phase, (span, pid, tid) in (("s", origin), ("f", target)):
        event = {"name": name, "cat": "arrow", "ph": phase, "id": number, "ts": _microseconds(span.start)}
        yield {**event, "pid": pid, "tid": tid, **({"bp": "e"} if phase == "f" else {})}


def spans_of(events: Iterable[Event]) -> tuple[Span, ...]:
    """The spans of a trace; raises `KeyError`, `TypeError` or `ValueError` when they are not what was written."""
    found = []
    for event in events:
        if event["ph"] != "X":
            continue
        kind = KINDS[event["cat"]]
        args: dict[str, Value] = dict(event["args"])
        node, session = str(args.pop("node")), str(args.pop("session"))
        duration = 0.0 if kind.instant else float(event["dur"]) / 1e6
        found.append(Span(node, str(event["cat"]), float(event["ts"]) / 1e6, duration, args, session))
    return tuple(found)


def title(span: Span) -> str:
    """What stands on the span."""
    number = span.number
    match span.kind:
        case "segment" | "queued" | "transfer":
            outcome = span.text("outcome")
            return f"{number('ticket')}" + (f" {outcome}" if outcome in ("dead", "abandoned") else "")
        case "chosen":
            return f"{number('ticket')}: {number('tokens')} of {number('waiting')}"
        case "drafted":
            return f"draft {number('expanded')} -> {number('children')}"
        case "bubble":
            return span.text("cause")
        case "emitted":
            return f"{number('tokens')} tokens"
        case "pruned":
            return f"pruned {number('rows')}"
        case "verdict" | "heard" | "returned" if number("frontier") >= 0:
            return f"{span.kind} {number('frontier')}"
    return span.kind


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


class Tracks:
    """Numbers of processes and tracks, given out as spans need them."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._processes = {name: number for number, name in enumerate([*nodes, LINKS], start=1)}
        self._threads: dict[tuple[int, str], int] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._busy_until: dict[tuple[int, str], list[float]] = {}

    def place(self, span: Span) -> tuple[int, int]:
        """Process and track of a span; spans come in order of their start."""
        kind = KINDS[span.kind]
        process, track = span.node, kind.track
        if span.kind == "transfer":
            process, track = LINKS, f"{span.node} -> {span.text('to')}"
        pid = self._processes.setdefault(process, len(self._processes) + 1)
        if kind.overlaps:
            lane = self._lane(pid, track, span)
            track = track if lane == 0 else f"{track} ({lane + 1})"
        tid = self._threads.setdefault((pid, track), len(self._threads) + 1)
        self._names[pid, tid] = track
        return pid, tid

    def _lane(self, pid: int, track: str, span: Span) -> int:
        lanes = self._busy_until.setdefault((pid, track), [])
        for lane, until in enumerate(lanes):
            if until <= span.start:
                lanes[lane] = span.end
                return lane
        lanes.append(span.end)
        return len(lanes) - 1

    def names(self) -> Iterator[Event]:
        for name, pid in self._processes.items():
            yield _named("process_name", pid, 0, name)
            yield {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
        for (pid, tid), name in self._names.items():
            yield _named("thread_name", pid, tid, name)
            yield {"name": "thread_sort_index", "ph": "M", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
