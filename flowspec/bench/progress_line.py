"""One line on standard error that says how far a long measurement is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SECONDS: Final = 60.0
"""Between two lines where there is no terminal."""


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """What is given replaces the line on a terminal; elsewhere it is a line of its own, at most once a minute."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Live(Text(""), console=console, auto_refresh=False, transient=True) as live:
            yield lambda words: live.update(Text(words, no_wrap=True, overflow="ellipsis"), refresh=True)
        return
    said = -SECONDS

    def say(words: str) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            print(words, file=console.file, flush=True)

    yield say
