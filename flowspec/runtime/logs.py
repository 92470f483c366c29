"""How a node writes its log: lines for people on a terminal, one JSON object a line for everything else.

    {"time": "2026-01-31T12:00:00.123+00:00", "level": "warning", "logger": "flowspec.transport.zap", "message": "..."}

What is in a message is its author's business; that no secret key gets into one is `flowspec.transport.keys`'.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import IO, Literal, get_args

from flowspec.errors import ConfigurationError
from flowspec.printable import printable

Format = Literal["auto", "human", "json"]
LEVELS = ("debug", "info", "warning", "error")
FORMAT, LEVEL = "FLOWSPEC_LOG_FORMAT", "FLOWSPEC_LOG_LEVEL"
"""Environment variables, which carry both to the nodes that a command starts."""

MAX_MESSAGE = 8192
"""Characters of a message in a JSON line; a peer may have a part in it."""

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Readable(logging.Formatter):
    """For a terminal. What a peer has a part in can neither steer it nor look like a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n  ")


class JsonLines(logging.Formatter):
    """One JSON object a line, with everything that the call gave as `extra`."""

    def __init__(self, node: str | None) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE],
        }
        if self._node is not None:
            values["node"] = self._node
        values |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)[-MAX_MESSAGE:]
        return json.dumps(values, default=str, ensure_ascii=False)


def check_log_options(log_format: str, level: str) -> None:
    if log_format not in get_args(Format):
        raise ConfigurationError(
            f"there is no log format {log_format!r}", hint=f"formats: {', '.join(get_args(Format))}"
        )
    if level not in LEVELS:
        raise ConfigurationError(f"there is no log level {level!r}", hint=f"levels: {', '.join(LEVELS)}")


def configure_logs(
    log_format: str = "auto", level: str = "info", *, node: str | None = None, stream: IO[str] | None = None
) -> logging.Handler:
    """Send the log of this process to `stream` (standard error), in place of where it went before."""
    check_log_options(log_format, level)
    stream = stream or sys.stderr
    human = log_format == "human" or (log_format == "auto" and stream.isatty())
    handler = _for_people(stream, node) if human else logging.StreamHandler(stream)
    if not human:
        handler.setFormatter(JsonLines(node))
    root = logging.getLogger("flowspec")
    for former in list(root.handlers):
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False
    return handler


def announce_logs(log_format: str, level: str) -> None:
    """Let the nodes that this process starts log in the same way."""
    check_log_options(log_format, level)
    os.environ[FORMAT] = ("human" if sys.stderr.isatty() else "json") if log_format == "auto" else log_format
    os.environ[LEVEL] = level


def configure_announced(node: str) -> None:
    """For a node under a parent: as the parent announced it; otherwise logging stays as Python has it."""
    log_format, level = os.environ.get(FORMAT), os.environ.get(LEVEL)
    if log_format is not None and level is not None and log_format in get_args(Format) and level in LEVELS:
        configure_logs(log_format, level, node=node)


def _for_people(stream: IO[str], node: str | None) -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(file=stream, highlight=False, soft_wrap=True)
    handler = RichHandler(console=console, show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    handler.setFormatter(Readable(f"{node}: %(message)s" if node else "%(message)s"))
    return handler
