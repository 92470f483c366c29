"""`flowspec simulate`: how fast a pipe would be, on a virtual clock, and how that grows with what it is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.errors import ConfigurationError
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND

if TYPE_CHECKING:
    from flowspec.planning.estimate import Estimate, Workload
    from flowspec.planning.language import Language
    from flowspec.planning.pipe import SimulatedPipe
    from flowspec.planning.recording import Recording
    from flowspec.schedule.options import PolicyOptions

PROFILE = "paper-7b"
POLICIES = ("autoregressive", "chunked", "flowspec")
WIDTH = 80
LEGEND = """verdict, round: tokens written for each; cost: tokens that each stage computed
per token written; busy: the busiest stage's share of the time"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a policy, and (in a sweep) what was changed."""

    key: str
    value: float
    estimate: Estimate


def simulate(
    topology: Annotated[
        Path | None, typer.Argument(metavar="[TOPOLOGY]", help="A topology whose nodes have times.", show_default=False)
    ] = None,
    profile: Annotated[str | None, typer.Option(help=f"A profile of devices.  [default: {PROFILE}]")] = None,
    stages: Annotated[int | None, typer.Option(help="Stages, each with the profile's time.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy; may be given often.  [default: three of them]")
    ] = None,
    policy_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the one policy given.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that each session writes.")] = 256,
    sessions: Annotated[int, typer.Option(help="Sessions at the same time.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 64,
    quality: Annotated[float | None, typer.Option(help="Mean probability of the drafter's best guess.")] = None,
    tokens_per_round: Annotated[
        float | None, typer.Option(help=f"Or: what a round of chunked writes.  [default: {PAPER_TOKENS_PER_ROUND}]")
    ] = None,
    recording: Annotated[Path | None, typer.Option(metavar="FILE", help="Or: text and drafts of a real run.")] = None,
    draft_layers: Annotated[
        int | None, typer.Option(help="Layers of the drafter, if it is a head.  [default: the recording's, or 1]")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="KEY=V,V,...", help="stages, split, sessions, latency, rate or uneven.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs with texts of their own, averaged.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first run's text.")] = 0,
    message_overhead: Annotated[float, typer.Option(help="Software's milliseconds per message.")] = 0.0,
    segment_overhead: Annotated[float, typer.Option(help="And per segment at a stage.")] = 0.0,
    cores: Annotated[int | None, typer.Option(help="Cores that all nodes share.  [default: each its own]")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first runs' trace, for ui.perfetto.dev.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Predict the speed of a pipe with the schedulers that would run it. Without overheads, software takes no time."""
    from dataclasses import replace

    from flowspec.cli.traces import check_trace
    from flowspec.planning.estimate import Workload, changed, estimate
    from flowspec.planning.pipe import Overheads

    _check_counts(tokens=tokens, sessions=sessions, prompt=prompt, runs=runs)
    check_trace(trace)
    chosen = _policies(policy, policy_option)
    recorded = _recorded(recording)
    if draft_layers is None:
        draft_layers = recorded.draft_layers if recorded is not None else 1
    _check_counts(draft_layers=draft_layers)
    pipe, title = _pipe(topology, profile, stages, draft_layers)
    if cores is not None:
        _check_counts(cores=cores)
        pipe = replace(pipe, cores=cores)
    overheads = Overheads(message=message_overhead / 1e3, segment=segment_overhead / 1e3)
    languages, drafts = _languages(quality, tokens_per_round, recorded, seed, runs)
    if recording is not None:
        drafts += f" in {recording.name}"
    workload = Workload(languages, tokens, sessions, prompt, overheads)
    key, values = _sweep(sweep)
    rows = []
    for value in values:
        each_pipe, each_load = (pipe, workload) if value is None else changed(pipe, workload, key, value)
        for name, options in chosen.items():
            rows.append(Row(key, value or 0.0, estimate(each_pipe, name, each_load, options)))
    if trace is not None:
        _write_trace(trace, pipe, workload, chosen)
    if as_json:
        found = [{**({key: row.value} if key else {}), **row.estimate.as_values()} for row in rows]
        print(json.dumps({"pipe": title, "drafts": drafts, "tokens": tokens, "results": found}), flush=True)
        return
    _print(rows, f"{title}; {drafts}; {tokens} tokens")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigurationError(f"{name} is {count}; it must be 1 or more")


def _policies(names: list[str] | None, given: list[str] | None) -> dict[str, PolicyOptions]:
    from flowspec.cli.requests import check_policy, policy_options
    from flowspec.schedule.options import read_options

    if given and len(names or ()) != 1:
        raise ConfigurationError("options belong to one policy", hint="name it: --policy flowspec")
    chosen = {}
    for name in names or POLICIES:
        check_policy(name)
        chosen[name] = read_options(name, policy_options(name, given).items())
    return chosen


def _recorded(file: Path | None) -> Recording | None:
    from flowspec.planning.recording import Recording

    return None if file is None else Recording.read(file)


def _pipe(
    topology: Path | None, profile: str | None, stages: int | None, draft_layers: int
) -> tuple[SimulatedPipe, str]:
    from flowspec.planning.sources import pipe_of_profile, pipe_of_topology
    from flowspec.topology import Topology
    from flowspec.topology.profiles import load_profile

    if stages is not None:
        _check_counts(stages=stages)
    if topology is None:
        found = load_profile(profile or PROFILE)
        count = stages or found.stages
        return pipe_of_profile(found, count, draft_layers=draft_layers), f"{found.name}, {count} stages"
    if stages is not None:
        raise ConfigurationError("the topology says how many stages there are", hint="leave out --stages")
    loaded = Topology.load(topology)
    if profile is not None:
        loaded = loaded.replace(profile=profile)
    return pipe_of_topology(loaded, draft_layers=draft_layers), f"{topology}, {len(loaded.stages)} stages"


def _languages(
    quality: float | None, tokens_per_round: float | None, recorded: Recording | None, seed: int, runs: int
) -> tuple[tuple[Language, ...], str]:
    """What each run writes, and in words how good its drafts are."""
    from dataclasses import replace

    from flowspec.planning.estimate import texts
    from flowspec.planning.language import SyntheticLanguage
    from flowspec.synthetic.calibration import quality_for
    from flowspec.synthetic.guesses import Quality

    if sum(given is not None for given in (quality, tokens_per_round, recorded)) > 1:
        raise ConfigurationError("give one of --quality, --tokens-per-round and --recording")
    if recorded is not None:
        return tuple(replace(recorded, passages=(passage,)) for passage in recorded.passages), "recorded"
    if quality is not None and not 0.0 < quality < 1.0:
        raise ConfigurationError(f"quality is {quality:g}; it must be between 0 and 1")
    if quality is not None:
        found, words = Quality(quality), f"quality {quality:g}"
    else:
        per_round = PAPER_TOKENS_PER_ROUND if tokens_per_round is None else tokens_per_round
        found, words = quality_for(per_round), f"{per_round:g} tokens a round"
    language = SyntheticLanguage(found, seed)
    return texts(language, runs), words


def _sweep(text: str | None) -> tuple[str, list[float | None]]:
    """The key, and the values that it takes; without a sweep one value, None."""
    if text is None:
        return "", [None]
    key, _, listed = text.partition("=")
    try:
        values: list[float | None] = [float(value) for value in listed.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--sweep {text!r} is not KEY=VALUE,VALUE,...", hint="for example stages=2,4,8"
        ) from None
    return key.strip(), values


def _write_trace(path: Path, pipe: SimulatedPipe, workload: Workload, policies: dict[str, PolicyOptions]) -> None:
    from flowspec.tracing.trace import Trace

    traces = {}
    for name, options in policies.items():
        result = workload.run(0, pipe, name, options, trace=True)
        assert result.trace is not None
        traces[name] = result.trace
    Trace.in_turn(traces).write(path)


def _print(rows: list[Row], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    several = any(row.estimate.sessions > 1 for row in rows)
    table = Table(title=title, title_justify="left", width=WIDTH, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    if rows[0].key:
        table.add_column(rows[0].key, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    names = ["tokens/s", "all/s" if several else "verdict", "x plain", "round", "cost", "busy"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    plain = {row.value: row.estimate.tokens_per_second for row in rows if row.estimate.policy == "autoregressive"}
    for number, row in enumerate(rows):
        found = row.estimate
        if number and row.value != rows[number - 1].value:
            table.add_section()
        ratio = f"{found.tokens_per_second / plain[row.value]:.2f}" if plain.get(row.value) else "-"
        table.add_row(
            *([f"{row.value:g}"] if row.key else []),
            found.policy,
            f"{found.tokens_per_second:.2f}" + f" ±{found.error:.2f}" * (found.runs > 1),
            f"{found.throughput if several else found.tokens_per_verdict:.2f}",
            ratio,
            f"{found.tokens_per_round:.1f}",
            f"{found.cost:.1f}",
            f"{max(found.occupancy):.0%}",
        )
    console.print(table)
    console.print(LEGEND)
