"""What is drawn on a terminal: nodes that get ready, a line of statistics, byte counts. It decides nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from flowspec.cluster import NodeProgress
    from flowspec.wire.messages import GenerationStats


def stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class Readiness:
    """Nodes on their way to READY: bars on a terminal; elsewhere a line per step, or nothing when `quiet`."""

    def __init__(self, names: list[str], *, quiet: bool = False) -> None:
        self._names = names
        self._console = stderr_console()
        self._lines = not quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30, complete_style="cyan", finished_style="green"),
                TextColumn("{task.fields[state]}"),
                console=self._console,
                transient=True,
            )
            width = max(len(name) for name in self._names)
            self._tasks = {
                name: self._bars.add_task(name.ljust(width), total=None, state="starting") for name in self._names
            }
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def update(self, progress: NodeProgress) -> None:
        """Show how far a node is."""
        if self._bars is not None:
            loading = progress.state == "loading"
            text = f"loading {size(progress.done)} of {size(progress.total)}" if loading else progress.state
            done, total = (progress.done, progress.total or None) if loading else (1, 1)
            self._bars.update(self._tasks[progress.node], completed=done, total=total, state=text)
        elif self._lines and self._states.get(progress.node) != progress.state:
            print(f"{progress.node}: {progress.state}", file=sys.stderr, flush=True)
        self._states[progress.node] = progress.state


def statistics_line(stats: GenerationStats, finish_reason: str, seed: int) -> str:
    """The figures of one generation, two lines that fit 80 columns; a third one where it was interrupted."""
    share = f"{stats.accepted / stats.drafted:.0%}" if stats.drafted else "-"
    return (
        f"{stats.new_tokens} tokens, {stats.tokens_per_second:.1f}/s, first after {stats.time_to_first_token:.2f} s, "
        f"{stats.accepted_per_verdict:.2f} per verdict, end: {finish_reason}\n"
        f"drafted {stats.drafted}, accepted {stats.accepted} ({share}), pruned {stats.pruned}, seed {seed}"
    ) + _interruptions(stats)


def _interruptions(stats: GenerationStats) -> str:
    """A line of its own, or nothing. Times are of the whole; verdicts and drafts are those of the last coordinator."""
    if not stats.restarts:
        return ""
    times = "once" if stats.restarts == 1 else f"{stats.restarts} times"
    counted = f"; drafts are of the last {stats.new_tokens - stats.resumed} tokens" if stats.resumed else ""
    return f"\ninterrupted {times}, breaks included{counted}"


def counted(count: int, noun: str) -> str:
    """A number of things for people, e.g. "1 stage", "2 stages"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes for people, e.g. "8.4 MB"."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
