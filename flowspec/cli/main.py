"""The entry point: commands, and how errors are told: one line, an exit code, and no traceback unless asked for."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import Annotated

import typer

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
from flowspec.errors import FlowspecError

INTERRUPTED = 130
INTERNAL = 70

app = typer.Typer(
    name="flowspec",
    help="One large language model over several small devices, fast for a single user.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
app.command(short_help="Both policies on the shipped model, compared.")(demo)
app.command(short_help="Continue a prompt.")(generate)
app.command()(up)
app.command()(node)
app.command(short_help="Who should hold which layers, and how fast that is.")(plan)
app.command(short_help="How fast a pipe would be, on a virtual clock.")(simulate)
app.command(short_help="Make keys for the nodes and clients of a topology.")(keys)
app.command(short_help="Look for what is wrong, and say what to do.")(doctor)
app.command(short_help="What a running pipeline is doing.")(status)
app.command(short_help="Make safetensors of a draft head's pickled weights.")(convert_head)
app.command(short_help="Train a draft for a model of your own.")(train_draft)
app.add_typer(trace, name="trace")
app.add_typer(bench, name="bench")


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


def debugging() -> bool:
    return os.environ.get("FLOWSPEC_DEBUG", "") not in ("", "0")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; always ends in `SystemExit`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "--debug" in given:
        given.remove("--debug")
        # The environment carries it to the nodes that a command starts.
        os.environ["FLOWSPEC_DEBUG"] = "1"
    code = INTERNAL
    try:
        app(args=given, prog_name="flowspec")
    except FlowspecError as error:
        code = _tell(error, str(error), error.exit_code)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; nothing more may be written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        reason = f"{type(error).__name__}: {error}\n  this is a defect of flowspec; --debug shows where it happened"
        code = _tell(error, reason, INTERNAL)
    sys.exit(code)


def _tell(error: Exception, text: str, code: int) -> int:
    if debugging():
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
