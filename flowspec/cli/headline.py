"""`flowspec bench headline` and `flowspec bench demo`: campaigns with everything chosen, one JSON object each."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from flowspec.cli.campaign import (
    WIDTH,
    First,
    Last,
    Many,
    Output,
    Prompts,
    Sweep,
    Temperatures,
    Tokens,
    run_campaign,
    tell,
)
from flowspec.cli.many import counts, numbers, separate
from flowspec.errors import ConfigurationError

BEST_DRAFTER = "hybrid:eagle3=demo-eagle3-deep"
"""Of the demo model, where the draft node has a processor of its own: its deepest head, and copies."""

DEMO_SWEEPS = ("chunked.tree=40,120", "pipedec.layer=8,32")


def headline(
    quick: Annotated[bool, typer.Option("--quick", help="About 4 minutes in place of 17; nothing is swept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON object and nothing else.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take up the runs that the file holds.")] = False,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="The runs, a JSON object a line; older ones are set aside.")
    ] = Path("build/headline.jsonl"),
) -> None:
    """Measure what flowspec promises, on emulated devices.

    The model without weights, over real processes; the last line is one JSON
    object: ratios to chunked, pipedec and autoregressive with four stages,
    eight, a slow link and uneven stages, and what share of the simulated speed
    the runtime reaches.
    """
    from flowspec.bench.agreement import WholeModelJudge
    from flowspec.bench.headline import FULL, QUICK, lines_of, measure
    from flowspec.bench.pipes import open_pipe
    from flowspec.runtime.loop import run

    if not resume:
        set_aside(output, tell)
    values, _ = run(measure(QUICK if quick else FULL, output, open_pipe, WholeModelJudge(), tell))
    if not as_json:
        print("\n".join(lines_of(values, WIDTH)))
    print(json.dumps({"quick": quick, **values}), flush=True)


def demo(
    prompts: Prompts = None,
    first: First = 0,
    last: Last = None,
    temperatures: Temperatures = None,
    policies: Annotated[Many, typer.Option(metavar="NAME", help="Who takes part.  [default: all]")] = None,
    sweep: Sweep = None,
    drafters: Annotated[
        Many, typer.Option(metavar="KIND[=DIR]", help="Who drafts.  [default: hybrid:eagle3=demo-eagle3-deep]")
    ] = None,
    profiles: Annotated[Many, typer.Option(metavar="NAME", help="The devices.  [default: paper-7b]")] = None,
    stages: Annotated[Many, typer.Option(metavar="N", help="How many.  [default: 4]")] = None,
    tokens: Tokens = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON object and nothing else.")] = False,
    output: Output = Path("build/bench-demo.jsonl"),
) -> None:
    """Compare all policies with the shipped model on emulated devices.

    All share one drafter. The last line is one JSON object with the ratios;
    the same command goes on where an earlier one was interrupted.
    """
    from flowspec.bench.matrix import Matrix, contenders_of, read_sweeps
    from flowspec.bench.pipes import Pipe
    from flowspec.bench.questions import OWN_SETS, read_sets
    from flowspec.schedule.policies import POLICIES

    names = separate(policies) or list(POLICIES)
    if "flowspec" not in names:
        raise ConfigurationError("flowspec does not take part, and everything is compared with it")
    sweeps = sweep or [each for each in DEMO_SWEEPS if each.partition(".")[0] in names]
    matrix = Matrix(
        pipes=tuple(
            Pipe("demo", count, profile)
            for count in counts(stages, "--stages") or [4]
            for profile in separate(profiles) or ["paper-7b"]
        ),
        sets=read_sets(prompts or OWN_SETS, first=first, last=last),
        contenders=contenders_of(names, read_sweeps(sweeps)),
        drafters=tuple(separate(drafters) or [BEST_DRAFTER]),
        temperatures=tuple(numbers(temperatures, "--temperatures") or [0.0]),
        new_tokens=tokens,
        traced=True,
    )
    print(json.dumps(_compared(matrix, output, quiet=as_json)), flush=True)


def _compared(matrix: Any, output: Path, *, quiet: bool) -> dict[str, Any]:
    """Run what is missing; the figures by pipe with drafter, and by temperature."""
    from flowspec.bench.comparison import compare
    from flowspec.bench.headline import figures

    values: dict[str, Any] = {}
    for comparison in compare(run_campaign(matrix, output, quiet=quiet)):
        condition = comparison.condition
        place = values.setdefault(f"{condition.pipe}, drafter {condition.drafter}", {})
        place[f"temperature_{condition.temperature:g}"] = figures(comparison)
    return values


def set_aside(path: Path, tell: Callable[[str], None]) -> None:
    """Make room for new runs: those that the file holds get a name of their own beside it.

    A file that holds anything else is left alone, with an error.
    """
    from flowspec.bench.records import read_records

    if not path.exists() or not (found := read_records(path)):
        return
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
    kept = next(name for name in names if not name.exists())
    try:
        path.rename(kept)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be renamed: {error.strerror or error}", hint="see --output") from None
    tell(f"the {len(found)} runs that were in {path} are in {kept} now; --resume takes up those of an interrupted run")
