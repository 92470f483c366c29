"""Draws plots as PNG and SVG, with matplotlib where it is installed (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from flowspec.bench.series import Bars, Curves
from flowspec.errors import ConfigurationError

FORMATS: Final = ("png", "svg")
SIZE: Final = (8.0, 4.5)
"""Inches."""


def check_matplotlib() -> None:
    """Raise `ConfigurationError` when nothing can be drawn, before anything is."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "plots need matplotlib, which is not installed",
            hint='pip install "flowspec[plots]", or leave --plots out',
        ) from None


def draw_all(plots: Iterable[Curves | Bars], folder: Path) -> list[Path]:
    """One file per plot and format in `folder`, which is made; their paths."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            # No pyplot: it keeps every figure, and asks for a screen.
            figure = Figure(figsize=SIZE, layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            if isinstance(plot, Curves):
                _draw_curves(plot, axes)
            else:
                _draw_bars(plot, axes)
            axes.set_title(plot.title, fontsize=10)
            axes.set_ylabel(plot.y_label)
            axes.set_ylim(bottom=0)
            figure.legend(loc="outside lower center", ncols=2, fontsize=8)
            for kind in FORMATS:
                path = folder / f"{plot.name}.{kind}"
                figure.savefig(path, dpi=150)
                written.append(path)
    except OSError as error:
        raise ConfigurationError(f"the plots cannot be written to {folder}: {error.strerror or error}") from None
    return written


def _draw_curves(plot: Curves, axes: Any) -> None:
    for line in plot.lines:
        axes.plot(*zip(*line.points, strict=True), marker="o", label=line.name)
    axes.set_xscale("log", base=2)
    places = sorted({x for line in plot.lines for x, _ in line.points})
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.set_xlabel(plot.x_label)


def _draw_bars(plot: Bars, axes: Any) -> None:
    groups = range(len(plot.groups))
    width = 0.6 if plot.stacked else 0.8 / len(plot.bars)
    floor = [0.0 for _ in groups]
    for index, (name, heights) in enumerate(zip(plot.bars, plot.heights, strict=True)):
        if plot.stacked:
            axes.bar(groups, heights, width, bottom=list(floor), label=name)
            floor = [below + height for below, height in zip(floor, heights, strict=True)]
            continue
        places = [group - 0.4 + (index + 0.5) * width for group in groups]
        axes.bar(places, heights, width, label=name, yerr=_errors(plot, index), capsize=2)
    axes.set_xticks(list(groups), plot.groups, rotation=15 if max(map(len, plot.groups)) > 10 else 0, fontsize=8)


def _errors(plot: Bars, index: int) -> tuple[list[float], list[float]] | None:
    """How far the intervals of a bar's heights reach below and above them."""
    if plot.intervals is None or all(each is None for each in plot.intervals[index]):
        return None
    pairs = list(zip(plot.heights[index], plot.intervals[index], strict=True))
    below = [max(0.0, height - each[0]) if each else 0.0 for height, each in pairs]
    above = [max(0.0, each[1] - height) if each else 0.0 for height, each in pairs]
    return below, above
