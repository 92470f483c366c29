"""The entry point: the commands, in the order in which they are listed."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flowspec import __version__
from flowspec.cli.bench import app as bench
from flowspec.cli.convert_head import convert_head
from flowspec.cli.demo import demo
from flowspec.cli.doctor import doctor
from flowspec.cli.generate import generate
from flowspec.cli.keys import keys
from flowspec.cli.node import node
from flowspec.cli.plan import plan
from flowspec.cli.simulate import simulate
from flowspec.cli.status import status
from flowspec.cli.trace import app as trace
from flowspec.cli.train import train_draft
from flowspec.cli.up import up
from flowspec.program import DEBUG, run_program


class Commands(TyperGroup):
    """Ctrl-C is for `run_program` to tell: typer itself would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise asyncio.CancelledError from None


app = typer.Typer(
    name="flowspec",
    cls=Commands,
    help="One large language model over several small devices, fast for a single user.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
app.command(short_help="Both policies on the shipped model, compared.")(demo)
app.command(short_help="Continue a prompt.")(generate)
app.command(short_help="Run all nodes of a topology on this machine.")(up)
app.command(short_help="Run one node of a topology on this device.")(node)
app.command(short_help="Who should hold which layers, and how fast that is.")(plan)
app.command(short_help="How fast a pipe would be, on a virtual clock.")(simulate)
app.command(short_help="Make keys for the nodes and clients of a topology.")(keys)
app.command(short_help="Look for what is wrong, and say what to do.")(doctor)
app.command(short_help="What a running pipeline is doing.")(status)
app.command(short_help="Make safetensors of a draft head's pickled weights.")(convert_head)
app.command(short_help="Train a draft for a model of your own.")(train_draft)
app.add_typer(trace, name="trace", short_help="Look into traces that --trace wrote.")
app.add_typer(bench, name="bench", short_help="Measure, compare, report.")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"flowspec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also FLOWSPEC_DEBUG=1); accepted anywhere.")
    ] = False,
) -> None:
    """One large language model over several small devices, fast for a single user."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command; always ends in `SystemExit`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "--debug" in given:
        given.remove("--debug")
        # The environment carries it to the nodes that a command starts.
        os.environ[DEBUG] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks shows as "?"; it is no reason to end.
            stream.reconfigure(errors="replace")
    run_program(lambda: app(args=given, prog_name="flowspec"))
