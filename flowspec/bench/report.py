"""Recorded runs as tables of 80 columns: speeds per set, what an option is worth, acceptance and occupancy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from flowspec.bench.comparison import Comparison, compare
from flowspec.bench.matrix import Contender
from flowspec.bench.records import Record
from flowspec.bench.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH: Final = 80
MOST_SETS: Final = 6
"""Sets side by side in one table; more go into the next."""


def show_report(records: Iterable[Record], console: Console) -> None:
    """Print everything that the runs say."""
    found = list(records)
    for comparison in compare(found):
        for table in tables(comparison):
            console.print(table)
        if comparison.left_out:
            console.print(f"{comparison.left_out} questions that not all have answered do not count\n")
        if comparison.ties:
            console.print(f"{comparison.ties} runs differ from the first contender's tokens by shown ties only\n")
    console.print(_origin(found), style="dim")


def tables(comparison: Comparison) -> Iterator[Table]:
    """The tables of one condition; none when nobody has answered a question of every set."""
    if comparison.baseline is None:
        return
    names = comparison.sets
    for start in range(0, len(names), MOST_SETS):
        part = names[start : start + MOST_SETS]
        yield _speeds(comparison, comparison.baseline, part, with_mean=start + MOST_SETS >= len(names))
    variants = [who for who in comparison.contenders if who.options]
    if variants:
        yield _options(comparison, variants)
    yield _drafts(comparison)


def shown(estimate: Estimate) -> str:
    """E.g. "1.43 (1.39-1.46)"."""
    between = estimate.interval
    return f"{estimate.value:.2f}" + (f" ({between[0]:.2f}-{between[1]:.2f})" if between else "")


def rows_of(comparison: Comparison) -> list[tuple[str, Contender]]:
    """The lines of the main table: each policy as it was set, and behind it the best of its sweep, with names."""
    rows: list[tuple[str, Contender]] = []
    for policy in dict.fromkeys(who.policy for who in comparison.contenders):
        rows += [(who.label, who) for who in comparison.contenders if who.policy == policy and not who.swept]
        if (best := comparison.best(policy)) is not None:
            settings = " ".join(f"{name}={value}" for name, value in best.options) or "as set"
            rows.append((f"{policy}, best of sweep: {settings}", best))
    return rows


def _speeds(comparison: Comparison, baseline: Contender, names: Sequence[str], *, with_mean: bool) -> Table:
    """Tokens per second and, below, the ratio to the baseline: a column per set, then the mean."""
    table = _table(f"{comparison.condition.title}\ntokens/s, and ratio to {baseline.label}")
    table.add_column("policy", ratio=2)
    for name in names:
        table.add_column(name[:10], justify="right")
    if with_mean:
        table.add_column("mean", justify="right", no_wrap=True)
    for label, who in rows_of(comparison):
        cells = [
            f"{comparison.rate(who, name):.2f}\n{comparison.ratio(who, baseline, name).value:.2f}x" for name in names
        ]
        if with_mean:
            cells.append(f"{comparison.rate(who):.2f}\n{shown(comparison.ratio(who, baseline))}")
        table.add_row(label, *cells)
    return table


def _options(comparison: Comparison, variants: list[Contender]) -> Table:
    """Every variant against its policy as it was set."""
    table = _table(f"{comparison.condition.title}\nwhat options are worth")
    table.add_column("variant", ratio=1)
    for name in ("tokens/s", "of the policy as set", "per verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy in dict.fromkeys(who.policy for who in variants):
        first = comparison.standard(policy)
        for who in (who for who in comparison.contenders if who.policy == policy):
            against = "" if first is None or who == first else shown(comparison.ratio(who, first))
            table.add_row(who.label, f"{comparison.rate(who):.2f}", against, f"{comparison.acceptance(who)[1]:.2f}")
    return table


def _drafts(comparison: Comparison) -> Table:
    """How good the drafts were, and what the stages did with their time."""
    table = _table(f"{comparison.condition.title}\ndrafts and stages")
    table.add_column("policy", ratio=1)
    for name in ("accepted", "per verdict", "useful", "wasted", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, who in rows_of(comparison):
        accepted, per_verdict = comparison.acceptance(who)
        shares = comparison.occupancy.get(who, {})
        did = [f"{shares[name]:.0%}" if name in shares else "-" for name in ("useful", "wasted", "idle")]
        table.add_row(label, f"{accepted:.0%}" if accepted else "-", f"{per_verdict:.2f}", *did)
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", width=WIDTH)


def _origin(records: list[Record]) -> str:
    """Where the figures come from; several origins are all named."""
    places = {(record.place.machine, record.place.cores) for record in records}
    machines = sorted(f"{machine} ({cores} cores)" for machine, cores in places)
    versions = sorted({f"{record.place.flowspec} at {record.place.commit or 'no commit'}" for record in records})
    return f"{len(records)} runs, flowspec {', '.join(versions)}, on {', '.join(machines)}"
