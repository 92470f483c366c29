"""Times during which something was so: intervals, those that overlap or touch as one. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from flowspec.tracing.spans import Span


class Windows:
    """Of some spans: when at least one of them lasted."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._windows: list[tuple[float, float]] = []
        for start, end in sorted((span.start, span.end) for span in spans):
            if self._windows and start <= self._windows[-1][1]:
                self._windows[-1] = self._windows[-1][0], max(self._windows[-1][1], end)
            else:
                self._windows.append((start, end))

    def __iter__(self) -> Iterator[tuple[float, float]]:
        """(start, end) of each, in order."""
        return iter(self._windows)

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self._windows)

    def within(self, start: float, end: float) -> float:
        """How many of the seconds from `start` to `end` lie inside."""
        first = max(0, bisect_right(self._windows, start, key=lambda window: window[0]) - 1)
        inside = 0.0
        for begun, over in self._windows[first:]:
            if begun >= end:
                break
            inside += max(0.0, min(end, over) - max(start, begun))
        return inside
