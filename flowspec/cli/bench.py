"""`flowspec bench`: policies compared on questions, recorded and reported, and the headline figures."""

from __future__ import annotations

import typer

from flowspec.cli.campaign import report, run
from flowspec.cli.headline import demo, headline
from flowspec.cli.many import ManyValues

app = typer.Typer(help="Compare policies, and report what was measured.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Compare policies on questions, and report what was measured."""


app.command(cls=ManyValues, short_help="Ask every policy every question, in turns.")(run)
app.command(short_help="Tables and plots of recorded runs.")(report)
app.command(short_help="Measure what flowspec promises.")(headline)
app.command(cls=ManyValues, short_help="All policies on the shipped model.")(demo)
