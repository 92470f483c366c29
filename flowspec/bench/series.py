"""The curves and bars behind the plots: numbers with names, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flowspec.bench.comparison import Comparison, Condition
from flowspec.bench.report import rows_of


@dataclass(frozen=True, slots=True)
class Line:
    """One curve, its points in ascending order."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """A plot of lines over one axis."""

    name: str
    """Beginning of the file's name."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """A plot of bars in groups; `heights` has a row per bar name and a column per group.

    `intervals` are (low, high) of each, or None; `stacked`: the bars of a group stand on each other.
    """

    name: str
    title: str
    y_label: str
    groups: tuple[str, ...]
    bars: tuple[str, ...]
    heights: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[tuple[float, float] | None, ...], ...] | None = None
    stacked: bool = False


def plots_of(comparisons: Sequence[Comparison], link_rate: Callable[[str], float | None]) -> Iterator[Curves | Bars]:
    """All plots that the runs give; `link_rate` tells the rate in Mbit/s of a profile's links."""
    whole = [comparison for comparison in comparisons if comparison.baseline is not None]
    for number, comparison in enumerate(whole, start=1):
        yield _speed_up(comparison, number)
        yield _acceptance(comparison, number)
        if comparison.occupancy:
            yield _occupancy(comparison, number)
    yield from _curves(whole, "stages", "number of stages", lambda one: float(one.stages), _but_stages)
    yield from _curves(whole, "link-rate", "link rate, Mbit/s", lambda one: _rate(one, link_rate), _but_rate)


def _speed_up(comparison: Comparison, number: int) -> Bars:
    assert comparison.baseline is not None
    rows, names = rows_of(comparison), comparison.sets
    found = [[comparison.ratio(who, comparison.baseline, name) for name in names] for _, who in rows]
    return Bars(
        name=f"speed-up-{number}",
        title=comparison.condition.title,
        y_label=f"speed, ratio to {comparison.baseline.label}",
        groups=names,
        bars=tuple(label for label, _ in rows),
        heights=tuple(tuple(each.value for each in row) for row in found),
        intervals=tuple(tuple(each.interval for each in row) for row in found),
    )


def _acceptance(comparison: Comparison, number: int) -> Bars:
    rows, names = rows_of(comparison), comparison.sets
    return Bars(
        name=f"acceptance-{number}",
        title=comparison.condition.title,
        y_label="tokens per verdict",
        groups=names,
        bars=tuple(label for label, _ in rows),
        heights=tuple(tuple(comparison.acceptance(who, name)[1] for name in names) for _, who in rows),
    )


def _occupancy(comparison: Comparison, number: int) -> Bars:
    rows = [(label, comparison.occupancy[who]) for label, who in rows_of(comparison) if who in comparison.occupancy]
    shares = ("useful", "wasted", "idle")
    return Bars(
        name=f"occupancy-{number}",
        title=comparison.condition.title,
        y_label="share of the stages' time",
        groups=tuple(label for label, _ in rows),
        bars=shares,
        heights=tuple(tuple(did[share] for _, did in rows) for share in shares),
        stacked=True,
    )


def _curves(
    comparisons: Sequence[Comparison],
    name: str,
    x_label: str,
    place: Callable[[Condition], float | None],
    others: Callable[[Condition], str],
) -> Iterator[Curves]:
    """Speed over `place`: a plot for each title, which `others` makes of what is not on the axis, with two places."""
    families: dict[str, dict[float, Comparison]] = {}
    for comparison in comparisons:
        at = place(comparison.condition)
        if at is not None:
            families.setdefault(comparison.condition.titled(others(comparison.condition)), {})[at] = comparison
    plotted = [(title, sorted(family.items())) for title, family in families.items() if len(family) > 1]
    for number, (title, family) in enumerate(plotted, start=1):
        found: dict[str, list[tuple[float, float]]] = {}
        for at, comparison in family:
            for label, who in rows_of(comparison):
                if label == who.label and not who.swept:
                    found.setdefault(label, []).append((at, comparison.rate(who)))
        lines = tuple(Line(label, tuple(points)) for label, points in found.items())
        yield Curves(f"{name}-{number}", title, x_label, "tokens per second", lines)


def _but_stages(one: Condition) -> str:
    return one.pipe.partition(", ")[2]


def _but_rate(one: Condition) -> str:
    return ", ".join(part for part in one.pipe.split(", ") if not part.endswith("Mbit/s"))


def _rate(one: Condition, link_rate: Callable[[str], float | None]) -> float | None:
    if one.rate_mbit is not None:
        return one.rate_mbit
    return None if one.profile is None else link_rate(one.profile)
