"""From what each node noted to one trace: clocks aligned, transfers paired, bubbles found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowspec.tracing.bubbles import bubbles
from flowspec.tracing.clocks import Clock
from flowspec.tracing.records import (
    CHOSEN,
    FEATURES,
    LAYOUTS,
    REQUEST,
    RETURNED,
    SENT,
    USEFUL,
    VISIT,
    Record,
)
from flowspec.tracing.spans import OUTCOMES, Span, Value
from flowspec.tracing.trace import Trace

Place = Callable[[int], float]
"""From a time of a node's clock to seconds of the trace."""


@dataclass(slots=True)
class NodeRecords:
    """What one node noted of one session. `complete` is False when the end of it never came."""

    node: str
    records: list[Record] = field(default_factory=list)
    dropped: int = 0
    clock: Clock = field(default_factory=Clock)
    complete: bool = True


def assemble(session: str, noted: Sequence[NodeRecords], metadata: Mapping[str, Any]) -> Trace:
    """The trace of `session` from the records of all nodes: the draft node first, then the stages in pipe order.

    Second 0 is the request's arrival at the draft node, whose clock the others are aligned to.
    """
    origin = _origin(noted)
    nodes = tuple(each.node for each in noted)
    spans = list(_draft_node(session, noted, origin))
    for each in noted[1:]:
        spans += _stage(session, each, origin)
    spans += _transfers(session, noted, origin)
    spans += bubbles(spans, nodes)
    return Trace(
        tuple(sorted(spans, key=lambda span: span.start)),
        nodes,
        {
            **metadata,
            "origin_seconds": origin / 1e9,
            "clocks": {
                each.node: {"offset_seconds": each.clock.offset, "error_seconds": each.clock.error} for each in noted
            },
            "dropped": {each.node: each.dropped for each in noted},
            "incomplete": [each.node for each in noted if not each.complete],
        },
    )


def _origin(noted: Sequence[NodeRecords]) -> int:
    for record in noted[0].records:
        if record[0] == REQUEST:
            return record[1]
    return min((record[1] for record in noted[0].records if LAYOUTS[record[0]].times), default=0)


def _place(each: NodeRecords, origin: int) -> Place:
    here = each.clock.here
    return lambda there: (here(there) - origin) / 1e9


def _draft_node(session: str, noted: Sequence[NodeRecords], origin: int) -> Iterator[Span]:
    node, records = noted[0].node, noted[0].records
    place = _place(noted[0], origin)
    useful = {record[1]: record[2] for record in records if record[0] == USEFUL}
    for record in records:
        layout = LAYOUTS[record[0]]
        if record[0] in (SENT, USEFUL):
            continue
        args: dict[str, Value] = dict(zip(layout.values, record[1 + layout.times :], strict=True))
        if record[0] == CHOSEN:
            args["useful"] = useful.get(record[2], 0)
        elif record[0] == FEATURES:
            args = {"sender": noted[1 + record[2]].node, "count": record[3], "bytes": record[4]}
        yield _span(node, layout.name, [place(at) for at in record[1 : 1 + layout.times]], args, session)


def _stage(session: str, each: NodeRecords, origin: int) -> Iterator[Span]:
    place = _place(each, origin)
    for record in each.records:
        layout = LAYOUTS[record[0]]
        times = [place(at) for at in record[1 : 1 + layout.times]]
        args: dict[str, Value] = dict(zip(layout.values, record[1 + layout.times :], strict=True))
        if record[0] != VISIT:
            yield _span(each.node, layout.name, times, args, session)
            continue
        arrived, begun, ended, _ = times
        yield _span(each.node, "queued", [arrived, begun], {"ticket": args["ticket"]}, session)
        del args["bytes"]
        args["outcome"] = OUTCOMES[int(args["outcome"])]
        yield _span(each.node, "segment", [begun, ended], args, session)


def _span(node: str, kind: str, times: list[float], args: Mapping[str, Value], session: str) -> Span:
    """One time makes an instant, two make a span."""
    return Span(node, kind, times[0], max(0.0, times[-1] - times[0]), args, session)


def _transfers(session: str, noted: Sequence[NodeRecords], origin: int) -> Iterator[Span]:
    """From where each segment left to where it arrived; clocks that disagree never make it arrive earlier."""
    departures = [_departures(each, origin) for each in noted]
    arrivals = [_arrivals(each, origin) for each in noted]
    for index, each in enumerate(noted):
        after = (index + 1) % len(noted)
        receiver = noted[after].node
        for ticket, (left, size) in departures[index].items():
            arrived = arrivals[after].get(ticket)
            if arrived is not None:
                args: dict[str, Value] = {"ticket": ticket, "bytes": size, "to": receiver}
                yield _span(each.node, "transfer", [left, arrived], args, session)


def _departures(each: NodeRecords, origin: int) -> dict[int, tuple[float, int]]:
    """By ticket: when it left, and how many bytes."""
    place = _place(each, origin)
    found = {}
    for record in each.records:
        if record[0] == SENT:
            found[record[2]] = place(record[1]), record[3]
        elif record[0] == VISIT:
            found[record[5]] = place(record[4]), record[11]
    return found


def _arrivals(each: NodeRecords, origin: int) -> dict[int, float]:
    place = _place(each, origin)
    ticket_at = {VISIT: 5, RETURNED: 2}
    return {record[ticket_at[record[0]]]: place(record[1]) for record in each.records if record[0] in ticket_at}
