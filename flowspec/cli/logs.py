"""The options of commands that run nodes: how their log is written."""

from __future__ import annotations

from typing import Annotated

import typer

LogFormat = Annotated[
    str,
    typer.Option(metavar="FORMAT", help="auto (human on a terminal, else json), human, or json: one object a line."),
]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
