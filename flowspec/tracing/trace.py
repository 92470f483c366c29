"""A trace: spans of all nodes on one time line, and the file that holds it.

The file is Chrome's trace format in JSON: ui.perfetto.dev and chrome://tracing draw it, `Trace.read` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from flowspec.errors import ConfigurationError
from flowspec.output import OutputFile
from flowspec.tracing.bubbles import bubbles
from flowspec.tracing.chrome import events_of, spans_of
from flowspec.tracing.spans import Span

FORMAT = 1
"""Version of what `otherData` and the spans mean."""

HOW_TO_MAKE = "flowspec generate --trace FILE writes one"


@dataclass(frozen=True, slots=True)
class Trace:
    """`nodes` in pipe order, the draft node first; `metadata` is of plain JSON values."""

    spans: tuple[Span, ...]
    nodes: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spans: Iterable[Span], nodes: Sequence[str], metadata: dict[str, Any] | None = None) -> Self:
        """A trace of `spans`, with bubbles found anew: for whoever knows only what happened, not what did not."""
        kept = [span for span in spans if span.kind != "bubble"]
        kept += bubbles(kept, nodes)
        return cls(tuple(sorted(kept, key=lambda span: span.start)), tuple(nodes), metadata or {})

    @classmethod
    def merged(cls, traces: Sequence[Trace]) -> Trace:
        """Traces of several requests to one pipeline as one, on the time line of the first."""
        first = traces[0]
        spans: list[Span] = []
        for trace in traces:
            shift = trace.metadata.get("origin_seconds", 0.0) - first.metadata.get("origin_seconds", 0.0)
            spans += [replace(span, start=span.start + shift) for span in trace.spans]
        metadata = {
            **first.metadata,
            "requests": [request for trace in traces for request in trace.metadata.get("requests", [])],
            "incomplete": sorted({node for trace in traces for node in trace.metadata.get("incomplete", [])}),
            "dropped": {
                node: sum(trace.metadata.get("dropped", {}).get(node, 0) for trace in traces) for node in first.nodes
            },
            "clocks": {node: _worst_clock(traces, node) for node in first.nodes},
        }
        return cls.of(spans, first.nodes, metadata)

    @classmethod
    def in_turn(cls, traces: Mapping[str, Trace]) -> Trace:
        """Traces of pipelines that are alike, by name, as if one pipeline had done it all one after the other.

        Sessions are called by the trace's name and their own, and tickets go on where those of the trace before ended.
        """
        begin, ticket = 0.0, 0
        shifted: list[Trace] = []
        for name, trace in traces.items():
            spans = [_later(span, begin, name, ticket) for span in trace.spans if span.kind != "bubble"]
            requests = [
                {**request, "session": f"{name} {request.get('session')}"}
                for request in trace.metadata.get("requests", [])
            ]
            shifted.append(cls(tuple(spans), trace.nodes, {**trace.metadata, "requests": requests}))
            begin = max((span.end for span in spans), default=begin)
            ticket = max((span.number("ticket") for span in spans), default=ticket) + 1
        return cls.merged(shifted)

    def only(self, policy: str) -> Self:
        """The requests of one policy alone; `ConfigurationError` when there are none."""
        requests = self.metadata.get("requests", [])
        known = {str(request.get("policy")) for request in requests}
        if policy not in known:
            raise ConfigurationError(
                f"the trace holds no request of policy {policy!r}", hint=f"it has: {', '.join(sorted(known))}"
            )
        chosen = [request for request in requests if request.get("policy") == policy]
        sessions = {request.get("session") for request in chosen}
        spans = [span for span in self.spans if span.session in sessions]
        return self.of(spans, self.nodes, {**self.metadata, "requests": chosen})

    def write(self, path: str | Path) -> None:
        """Write the file, or leave what was there; `ConfigurationError` when that cannot be done."""
        other = {"flowspec_trace": FORMAT, "nodes": list(self.nodes), **self.metadata}
        with trace_file(path).replaced() as file:
            file.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(other) + ', "traceEvents": [')
            for number, event in enumerate(events_of(self.spans, self.nodes)):
                file.write(("\n" if number == 0 else ",\n") + json.dumps(event))
            file.write("\n]}\n")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The trace in a file; `ConfigurationError` when it holds none, or only the beginning of one."""
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}", hint=HOW_TO_MAKE) from None
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{path} is no trace, or only part of one: {error}",
                hint=f"was it copied whole? {HOW_TO_MAKE}",
            ) from None
        other = document.get("otherData") if isinstance(document, dict) else None
        other = other if isinstance(other, dict) else {}
        version = other.pop("flowspec_trace", None)
        if version is None:
            raise ConfigurationError(f"{path} is JSON, but no trace that flowspec wrote", hint=HOW_TO_MAKE)
        if version != FORMAT:
            raise ConfigurationError(
                f"{path} is a trace of format {version}, this release reads format {FORMAT}",
                hint="read it with the release of flowspec that wrote it",
            )
        try:
            nodes = tuple(str(node) for node in other.pop("nodes"))
            return cls(spans_of(document["traceEvents"]), nodes, other)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} is a damaged trace: {type(error).__name__}: {error}", hint=HOW_TO_MAKE
            ) from None


def _later(span: Span, seconds: float, name: str, tickets: int) -> Span:
    """The span behind others that took so long and used so many tickets."""
    args = span.args
    if "ticket" in args:
        args = {**args, "ticket": span.number("ticket") + tickets}
    return replace(span, start=span.start + seconds, session=f"{name} {span.session}", args=args)


def _worst_clock(traces: Sequence[Trace], node: str) -> dict[str, float]:
    clocks = [trace.metadata.get("clocks", {}).get(node, {}) for trace in traces]
    return max(clocks, key=lambda clock: float(clock.get("error_seconds", 0.0)))


def trace_file(path: str | Path) -> OutputFile:
    """Where a trace is to be written; to be checked before anything is started."""
    return OutputFile(path, "the trace")
