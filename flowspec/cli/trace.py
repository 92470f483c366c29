"""`flowspec trace summary`: the figures of a trace, as tables or as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flowspec.tracing.summary import Spread, Summary

WIDTH = 80

app = typer.Typer(help="Look into traces that --trace wrote.", no_args_is_help=True)


@app.callback()
def _trace() -> None:
    """Look into traces that --trace wrote; ui.perfetto.dev draws them."""


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace.", show_default=False)],
    policy: Annotated[str | None, typer.Option(help="Only the requests of this policy.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Who was busy with what, what the stages waited for, what the links carried."""
    from flowspec.tracing.summary import summarise
    from flowspec.tracing.trace import Trace

    trace = Trace.read(file)
    found = summarise(trace if policy is None else trace.only(policy))
    if as_json:
        print(json.dumps(found.as_values()), flush=True)
        return
    from rich.console import Console

    console = Console(highlight=False)
    _print_text(console, found)
    _print_nodes(console, found)
    _print_waits(console, found)
    _print_links(console, found)


def _print_text(console: Console, found: Summary) -> None:
    requests = "1 request" if found.requests == 1 else f"{found.requests} requests"
    lines = [
        f"{requests}, {found.seconds:.2f} s: {found.output_tokens} tokens, {found.verdicts} verdicts, "
        f"{found.tokens_per_verdict:.2f} tokens per verdict",
        f"{found.segments} segments of {found.segment_tokens:.1f} tokens (prompt left out), "
        f"chosen from a tree of {found.tree_tokens:.1f}",
        f"{found.drafted_tokens} tokens drafted and sent, {found.wasted_tokens} of them wasted",
        f"verdict to next segment, at the draft node: {_spread(found.reaction)}",
        f"verdict to next segment, from the tail:     {_spread(found.reaction_from_tail)}",
    ]
    if found.clock_error:
        lines.append(f"clocks agree to {found.clock_error * 1e3:.2f} ms")
    if found.dropped:
        lines.append(f"the beginning is missing: {found.dropped} records found no room")
    if found.incomplete:
        lines.append(f"not all came from {', '.join(found.incomplete)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """Columns without lines between them: with lines, names of all causes would not fit."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", width=WIDTH, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_nodes(console: Console, found: Summary) -> None:
    names = ("useful", "wasted", "idle", "segments", "tokens each", "wasted tokens")
    table = _table("nodes: share of the time that requests lived", ("node",), names)
    for place, node in enumerate(found.nodes):
        is_stage = place > 0
        table.add_row(
            node.node if is_stage else f"{node.node} (drafter)",
            f"{node.useful:.1%}",
            f"{node.wasted:.1%}" if is_stage else "",
            f"{node.idle:.1%}",
            str(node.segments) if is_stage else f"{node.segments} steps",
            f"{node.mean_tokens:.1f}",
            f"{node.wasted_tokens} of {node.tokens}" if is_stage else "",
        )
    console.print(table)


def _print_waits(console: Console, found: Summary) -> None:
    stages = found.nodes[1:]
    causes = tuple(dict.fromkeys(cause for node in stages for cause in node.waits))
    table = _table("idle: what the stages waited for", ("node",), causes)
    for node in stages:
        table.add_row(node.node, *(f"{node.waits.get(cause, 0.0):.1%}" for cause in causes))
    console.print(table)


def _print_links(console: Console, found: Summary) -> None:
    from flowspec.cli.render import size

    table = _table("links", ("from", "to"), ("messages", "bytes", "mean time"))
    for link in found.links:
        time = f"{link.mean_seconds * 1e3:.2f} ms" if link.messages else ""
        table.add_row(link.sender, link.receiver, str(link.messages), size(link.bytes), time)
    console.print(table)


def _spread(spread: Spread) -> str:
    if spread.median is None or spread.p90 is None:
        return "never"
    return f"median {spread.median * 1e3:.2f} ms, p90 {spread.p90 * 1e3:.2f} ms"
