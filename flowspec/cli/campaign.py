"""`flowspec bench run` and `flowspec bench report`: policies compared on questions, in turns; tables and plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.cli.many import counts, numbers, separate
from flowspec.cli.requests import read_address
from flowspec.errors import ConfigurationError
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowspec.bench.matrix import Matrix
    from flowspec.bench.pipes import Pipe
    from flowspec.bench.records import Record

WIDTH = 80

Many = list[str] | None
Prompts = Annotated[
    Many, typer.Option(metavar="SET", help="code, chat, maths, summaries, or a question.jsonl.", show_default=False)
]
First = Annotated[int, typer.Option(help="Place of the first question of each set, from 0.")]
Last = Annotated[int | None, typer.Option(help="Place of the last one.  [default: the end]")]
Sweep = Annotated[Many, typer.Option(metavar="P.O=V,V", help="Values of a policy's option, as chunked.tree=40,120.")]
Setting = Annotated[Many, typer.Option(metavar="P.O=V", help="An option of a policy, as flowspec.tree=32.")]
Temperatures = Annotated[Many, typer.Option(metavar="T", help="One or several.  [default: 0]")]
Tokens = Annotated[int, typer.Option(help="Tokens that each run writes.")]
Output = Annotated[Path, typer.Option(metavar="FILE", help="The runs, a JSON object a line; taken up again.")]


def run(
    policies: Annotated[Many, typer.Option(metavar="NAME", help="Who takes part.  [default: all]")] = None,
    option: Setting = None,
    sweep: Sweep = None,
    prompts: Prompts = None,
    first: First = 0,
    last: Last = None,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template.")] = False,
    temperatures: Temperatures = None,
    drafters: Annotated[
        Many, typer.Option(metavar="KIND[=DIR]", help="Kinds, or hybrid:KIND.  [default: the model's]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR", help="The model; synthetic has no weights.  [default: demo]")
    ] = None,
    stages: Annotated[Many, typer.Option(metavar="N", help="Stages, one or several counts.  [default: 4]")] = None,
    profiles: Annotated[Many, typer.Option(metavar="NAME", help="Emulated devices.  [default: none]")] = None,
    link_rates: Annotated[Many, typer.Option(metavar="MBIT", help="Of the emulated links, in Mbit/s.")] = None,
    slow_stage: Annotated[float | None, typer.Option(help="One emulated stage is so many times slower.")] = None,
    tokens_per_round: Annotated[
        float | None, typer.Option(help=f"Of chunked, with the synthetic model.  [default: {PAPER_TOKENS_PER_ROUND}]")
    ] = None,
    connect: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Measure a running pipeline.")] = None,
    tokens: Tokens = 128,
    repeats: Annotated[int, typer.Option(help="How often each question is asked.")] = 1,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 7,
    ablation: Annotated[bool, typer.Option("--ablation", help="flowspec without each of its mechanisms, too.")] = False,
    occupancy: Annotated[bool, typer.Option("--occupancy", help="Trace one more run of each, unmeasured.")] = False,
    output: Output = Path("build/bench-runs.jsonl"),
) -> None:
    """Ask every policy every question, in turns, and record each run.

    Every question is answered by all before the next is asked, each time in
    another order; all must write the same tokens. The same command goes on
    where an earlier one was interrupted.
    """
    from flowspec.bench.matrix import Matrix, ablations, contenders_of, read_settings, read_sweeps
    from flowspec.bench.questions import read_sets
    from flowspec.schedule.policies import POLICIES

    names = separate(policies) or list(POLICIES)
    pipes, kinds = _pipes(
        connect, model, stages, profiles, link_rates, separate(drafters), slow_stage, tokens_per_round
    )
    settings = read_settings(option or ())
    contenders = contenders_of(names, read_sweeps(sweep or ()), settings)
    if ablation:
        contenders += ablations(settings.get("flowspec", ()))
    matrix = Matrix(
        pipes=pipes,
        sets=read_sets(prompts or ["code", "chat", "maths", "summaries"], first=first, last=last),
        contenders=contenders,
        drafters=kinds,
        temperatures=tuple(numbers(temperatures, "--temperatures") or [0.0]),
        new_tokens=tokens,
        seed=seed,
        repeats=repeats,
        chat=chat,
        traced=occupancy,
    )
    run_campaign(matrix, output)


def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What `run` wrote.", show_default=False)],
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw plots there, as PNG and SVG (needs matplotlib).")
    ] = None,
) -> None:
    """Tables of recorded runs: speeds per set, what options are worth, drafts."""
    from rich.console import Console

    from flowspec.bench.records import read_all
    from flowspec.bench.report import show_report

    records = read_all(files)
    if not records:
        raise ConfigurationError(f"there are no runs in {', '.join(map(str, files))}")
    if plots is not None:
        from flowspec.bench.plots import check_matplotlib

        check_matplotlib()
    show_report(records, Console(width=WIDTH, highlight=False))
    if plots is not None:
        from flowspec.bench.comparison import compare
        from flowspec.bench.pipes import link_rate
        from flowspec.bench.plots import draw_all
        from flowspec.bench.series import plots_of

        for path in draw_all(plots_of(compare(records), link_rate), plots):
            print(path)


def _pipes(
    connect: str | None,
    model: str | None,
    stages: Sequence[str] | None,
    profiles: Sequence[str] | None,
    rates: Sequence[str] | None,
    drafters: list[str],
    slow_stage: float | None,
    tokens_per_round: float | None,
) -> tuple[tuple[Pipe, ...], tuple[str, ...]]:
    """The pipes, every topology of which has been made once, and the drafters."""
    from flowspec.bench.pipes import Pipe, running_pipe
    from flowspec.cli.models import check_models
    from flowspec.runtime.loop import run
    from flowspec.topology.topology import DEMO_MODEL, SYNTHETIC_MODEL

    if connect is not None:
        given: dict[str, object] = {
            "--model": model,
            "--stages": stages,
            "--profiles": profiles,
            "--link-rates": rates,
            "--drafters": drafters or None,
            "--slow-stage": slow_stage,
            "--tokens-per-round": tokens_per_round,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ConfigurationError(
                f"{', '.join(wrong)} cannot be given with --connect", hint="a running pipeline is what it is"
            )
        pipe, drafter = run(running_pipe(read_address(connect)))
        return (pipe,), (drafter,)
    model, slow_stage = model or DEMO_MODEL, 1.0 if slow_stage is None else slow_stage
    if tokens_per_round is not None and model != SYNTHETIC_MODEL:
        raise ConfigurationError(
            "--tokens-per-round says how good the synthetic model's drafts are", hint=f"give --model {SYNTHETIC_MODEL}"
        )
    pipes = tuple(
        Pipe(model, count, profile, rate, slow_stage, tokens_per_round)
        for count in counts(stages, "--stages") or [4]
        for profile in separate(profiles) or (None,)
        for rate in numbers(rates, "--link-rates") or (None,)
    )
    kinds = tuple(drafters or ["auto"])
    for pipe in pipes:
        for kind in kinds:
            check_models(pipe.topology(kind))
    return pipes, kinds


def run_campaign(matrix: Matrix, output: Path, *, quiet: bool = False) -> list[Record]:
    """Run what is missing, and print the report of it all unless `quiet`; all runs of the matrix."""
    from rich.console import Console

    from flowspec.bench.agreement import WholeModelJudge
    from flowspec.bench.pipes import open_pipe
    from flowspec.bench.records import Log
    from flowspec.bench.report import show_report
    from flowspec.bench.runner import Campaign
    from flowspec.runtime.loop import run

    campaign = Campaign(matrix, Log(output), open_pipe, WholeModelJudge(), tell)
    records = run(campaign.run())
    for reason in campaign.skipped:
        tell(f"skipped: {reason}")
    if not records:
        raise ConfigurationError("nothing was measured: every question is over a limit of the pipe", hint="see above")
    tell(f"written to {output}")
    if not quiet:
        show_report(records, Console(width=WIDTH, highlight=False))
    return records


def tell(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)
