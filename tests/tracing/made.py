"""A small trace made by hand, of which every figure is known.

Two stages, one request of 1 second that writes 3 tokens. Ticket 1 is the prompt (2 tokens), ticket 2 the certain token
and a guess that holds, ticket 3 two guesses that do not.
"""

from __future__ import annotations

from flowspec.tracing.spans import Span
from flowspec.tracing.trace import Trace

NODES = ("draft", "stage-1", "stage-2")
S = "s"


def chosen(at: float, ticket: int, tokens: int, useful: int, **other: int) -> Span:
    args = {"ticket": ticket, "number": ticket - 1, "tokens": tokens, "waiting": tokens, "tree": 6, "flying": 0}
    return Span("draft", "chosen", at, 0.0, {**args, "root": 0, "prompt": 0, "useful": useful, **other}, S)


def hop(node: str, to: str, start: float, end: float, ticket: int, size: int) -> Span:
    return Span(node, "transfer", start, end - start, {"ticket": ticket, "bytes": size, "to": to}, S)


def segment(node: str, start: float, end: float, ticket: int, computed: int) -> Span:
    args = {"ticket": ticket, "number": ticket - 1, "tokens": computed, "computed": computed, "kept": computed}
    return Span(node, "segment", start, end - start, {**args, "outcome": "whole"}, S)


def returned(at: float, ticket: int, frontier: int, *, moved: int, guessed: int = 0) -> Span:
    args = {"ticket": ticket, "frontier": frontier, "token": 9, "moved": moved, "guessed": guessed}
    return Span("draft", "returned", at, 0.0, args, S)


SPANS = (
    Span("draft", "request", 0.0, 1.0, {"prompt": 2, "tokens": 3}, S),
    chosen(0.05, 1, 2, 2, prompt=1),
    hop("draft", "stage-1", 0.06, 0.10, 1, 100),
    segment("stage-1", 0.10, 0.20, 1, 2),
    hop("stage-1", "stage-2", 0.20, 0.25, 1, 1000),
    segment("stage-2", 0.25, 0.35, 1, 2),
    Span("stage-2", "verdict", 0.35, 0.0, {"ticket": 1, "frontier": 1, "token": 9}, S),
    hop("stage-2", "draft", 0.35, 0.40, 1, 50),
    returned(0.40, 1, 1, moved=1),
    Span("draft", "emitted", 0.40, 0.0, {"tokens": 1}, S),
    Span("draft", "drafted", 0.42, 0.06, {"expanded": 1, "given": 1, "children": 4}, S),
    chosen(0.50, 2, 2, 2, root=1),
    hop("draft", "stage-1", 0.50, 0.52, 2, 100),
    segment("stage-1", 0.52, 0.60, 2, 2),
    chosen(0.53, 3, 2, 0, tree=8),
    hop("draft", "stage-1", 0.53, 0.55, 3, 120),
    Span("stage-1", "queued", 0.55, 0.05, {"ticket": 3}, S),
    segment("stage-1", 0.60, 0.70, 3, 2),
    hop("stage-1", "stage-2", 0.60, 0.62, 2, 1000),
    segment("stage-2", 0.62, 0.72, 2, 2),
    Span("stage-2", "verdict", 0.72, 0.0, {"ticket": 2, "frontier": 3, "token": 9}, S),
    hop("stage-2", "draft", 0.72, 0.75, 2, 50),
    returned(0.75, 2, 3, moved=1),
    Span("stage-1", "heard", 0.74, 0.0, {"frontier": 3, "token": 9}, S),
    Span("draft", "emitted", 0.75, 0.0, {"tokens": 2}, S),
    hop("stage-1", "stage-2", 0.70, 0.75, 3, 1000),
    segment("stage-2", 0.75, 0.75, 3, 0),
)
METADATA = {
    "requests": [{"session": S, "policy": "flowspec"}],
    "origin_seconds": 5.0,
    "clocks": {
        "draft": {"offset_seconds": 0.0, "error_seconds": 0.0},
        "stage-1": {"offset_seconds": 2.0, "error_seconds": 0.001},
        "stage-2": {"offset_seconds": 3.0, "error_seconds": 0.002},
    },
    "dropped": {"draft": 0, "stage-1": 0, "stage-2": 0},
    "incomplete": [],
}


def made() -> Trace:
    return Trace.of(SPANS, NODES, METADATA)
