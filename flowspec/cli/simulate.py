"""`flowspec simulate`: how fast a pipe would be, on a virtual clock, and how that grows with what it is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.errors import ConfigurationError, ModelError
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND

if TYPE_CHECKING:
    from flowspec.planning.estimate import Estimate, Workload
    from flowspec.planning.language import Language
    from flowspec.planning.pipe import SimulatedPipe
    from flowspec.planning.recording import Recording
    from flowspec.schedule.options import PolicyOptions
    from flowspec.synthetic.guesses import Quality
    from flowspec.topology import Topology

PROFILE = "paper-7b"
POLICIES = ("autoregressive", "chunked", "flowspec")
RUNS = 4
MOST_DRAFT_LAYERS = 4096
"""As many as a stage of a profile may have."""

WIDTH = 80
LEGEND = """verdict, round: tokens written for each; x plain: what all sessions get, over
autoregressive; first: seconds to the first token; cost: tokens that each stage
computed per token written; busy: the busiest stage's share of the time"""


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
    profile: Annotated[
        str | None, typer.Option(help=f"A profile of devices; a topology's is replaced.  [default: {PROFILE}]")
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Stages, each with the profile's time.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy; may be given often.  [default: three of them]")
    ] = None,
    policy_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the one policy given.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that each session writes.")] = 256,
    sessions: Annotated[int | None, typer.Option(help="Sessions at the same time.  [default: 1]")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens of the prompt.  [default: the recording's, or 64]")] = None,
    quality: Annotated[float | None, typer.Option(help="Mean probability of the drafter's best guess.")] = None,
    tokens_per_round: Annotated[
        float | None,
        typer.Option(
            help=f"Or: what a round of chunked writes.  [default: the topology's, or {PAPER_TOKENS_PER_ROUND}]"
        ),
    ] = None,
    recording: Annotated[Path | None, typer.Option(metavar="FILE", help="Or: text and drafts of a real run.")] = None,
    draft_layers: Annotated[
        int | None, typer.Option(help="Layers of the drafter, if it is a head.  [default: the recording's, or 1]")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V,...", help="One of stages, split, sessions, latency, rate and uneven."),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(help=f"Runs with texts of their own, averaged.  [default: one a recorded text, or {RUNS}]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first run's text.  [default: 0]")] = None,
    message_overhead: Annotated[float, typer.Option(help="Software's milliseconds per message.")] = 0.0,
    segment_overhead: Annotated[float, typer.Option(help="And per segment at a stage.")] = 0.0,
    cores: Annotated[int | None, typer.Option(help="Cores that all nodes share.  [default: each its own]")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first runs' trace, for ui.perfetto.dev.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Predict the speed of a pipe with the schedulers that would run it. Without overheads, software takes no time."""
    from flowspec.cli.traces import check_trace
    from flowspec.planning.estimate import Workload, estimate
    from flowspec.planning.pipe import Overheads
    from flowspec.planning.simulator import PROMPT
    from flowspec.planning.sources import lacks_token_bytes
    from flowspec.schedule.continuous import ContinuousSettings

    _check("tokens", tokens, least=2)
    for name, count in (("sessions", sessions), ("prompt", prompt), ("runs", runs), ("cores", cores)):
        if count is not None:
            _check(name, count)
    _check_milliseconds(message_overhead=message_overhead, segment_overhead=segment_overhead)
    check_trace(trace)
    key, values = _sweep(sweep, stages=stages, sessions=sessions)
    recorded = _recorded(recording, runs=runs, seed=seed, prompt=prompt)
    loaded = _topology(topology, profile, stages)
    chosen = _policies(policy, policy_option, loaded)
    languages, drafts = _languages(quality, tokens_per_round, recorded, loaded, seed or 0, runs or RUNS)
    if recording is not None:
        drafts += f" in {recording.name}"
    if draft_layers is None:
        draft_layers = recorded.draft_layers if recorded is not None else 1
    _check("draft_layers", draft_layers, most=MOST_DRAFT_LAYERS)
    workload = Workload(
        languages,
        tokens,
        sessions or 1,
        prompt or PROMPT,
        Overheads(message=message_overhead / 1e3, segment=segment_overhead / 1e3),
        None if loaded is None else ContinuousSettings.with_width(loaded.drafter.width),
    )
    written = _written(workload, recording)
    pipe = _pipe(loaded, profile, stages, draft_layers, cores)
    swept = _swept(pipe, workload, key, values)
    if any(lacks_token_bytes(each) for each, _ in swept):
        pipe = _pipe(loaded, profile, stages, draft_layers, cores, token_bytes=_token_bytes(loaded))
        swept = _swept(pipe, workload, key, values)
    rows = []
    for value, (each_pipe, each_load) in zip(values, swept, strict=True):
        for name, options in chosen.items():
            rows.append(Row(key, value or 0.0, estimate(each_pipe, name, each_load, options)))
    if trace is not None:
        _write_trace(trace, pipe, workload, chosen)
    title = _title(topology, profile, len(pipe.stages), key)
    least, most = min(written), max(written)
    if as_json:
        found = [{**({key: row.value} if key else {}), **row.estimate.as_values()} for row in rows]
        mean: float = sum(written) / len(written) if least < most else least
        print(json.dumps({"pipe": title, "drafts": drafts, "tokens": mean, "results": found}), flush=True)
        return
    shown = f"{least}" if least == most else f"{least} to {most}"
    _print(rows, f"{title}; {drafts}; {shown} tokens")


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _check(name: str, count: int, least: int = 1, most: int | None = None) -> None:
    if count < least or (most is not None and count > most):
        wanted = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ConfigurationError(f"{name} is {count}; it must be {wanted}")


def _check_milliseconds(**given: float) -> None:
    for name, milliseconds in given.items():
        if not 0.0 <= milliseconds < inf:
            raise ConfigurationError(f"{name} is {milliseconds:g} ms; it must be finite, and 0 or more")


def _sweep(
    given: list[str] | None, *, stages: int | None, sessions: int | None
) -> tuple[str, tuple[float, ...] | tuple[None]]:
    """The key, and the values that it takes; without a sweep one value, None. Nothing else may say what it says."""
    if not given:
        return "", (None,)
    if len(given) > 1:
        raise ConfigurationError("one thing can be swept at a time", hint="give --sweep once")
    key, _, listed = given[0].partition("=")
    key = key.strip()
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--sweep {given[0]!r} is not KEY=VALUE,VALUE,...", hint="for example stages=2,4,8"
        ) from None
    if {"stages": stages, "sessions": sessions}.get(key) is not None:
        raise ConfigurationError(f"--sweep {key} and --{key} contradict each other", hint=f"leave out --{key}")
    return key, values


def _recorded(file: Path | None, **synthetic: int | None) -> Recording | None:
    """What was recorded; `synthetic` are options that say what only a synthetic text leaves open."""
    from flowspec.planning.recording import Recording

    if file is None:
        return None
    recorded = Recording.read(file)
    for name, value in synthetic.items():
        if value is not None:
            raise ConfigurationError(
                f"--{name} has no effect on what was recorded",
                hint=f"a recording has its own prompts, and makes one run of each; leave out --{name}",
            )
    return recorded


def _topology(file: Path | None, profile: str | None, stages: int | None) -> Topology | None:
    from flowspec.cli.topology_file import load_topology
    from flowspec.planning.estimate import MOST_STAGES

    if stages is not None:
        _check("stages", stages, most=MOST_STAGES)
    if file is None:
        return None
    if stages is not None:
        raise ConfigurationError("the topology says how many stages there are", hint="leave out --stages")
    loaded = load_topology(file)
    return loaded if profile is None else loaded.replace(profile=profile)


def _policies(names: list[str] | None, given: list[str] | None, topology: Topology | None) -> dict[str, PolicyOptions]:
    """What is simulated, with options: those of the topology are of its own policy, and give way to `given`."""
    from flowspec.cli.requests import check_policy, policy_options
    from flowspec.schedule.options import as_text, read_options

    if given and len(names or ()) != 1:
        raise ConfigurationError("options belong to one policy", hint="name it: --policy flowspec")
    own = () if topology is None else as_text(topology.policy_options)
    chosen = {}
    for name in names or POLICIES:
        check_policy(name)
        asked = policy_options(name, given)
        written = own if topology is not None and name == topology.policy else ()
        chosen[name] = read_options(name, (*written, *asked.items()))
    return chosen


# ---- what is written -------------------------------------------------------------------------------------------------


def _languages(
    quality: float | None,
    tokens_per_round: float | None,
    recorded: Recording | None,
    topology: Topology | None,
    seed: int,
    runs: int,
) -> tuple[tuple[Language, ...], str]:
    """What each run writes, and in words how good its drafts are."""
    from dataclasses import replace

    from flowspec.planning.estimate import texts
    from flowspec.planning.language import SyntheticLanguage

    if sum(given is not None for given in (quality, tokens_per_round, recorded)) > 1:
        raise ConfigurationError("give one of --quality, --tokens-per-round and --recording")
    if recorded is not None:
        return tuple(replace(recorded, passages=(passage,)) for passage in recorded.passages), "recorded"
    written = topology.synthetic if topology is not None else None
    if quality is not None or tokens_per_round is not None or written is None:
        found, words = _drafts(quality, tokens_per_round)
    else:
        try:
            found, words = _drafts(written.quality, written.tokens_per_round)
        except ConfigurationError as error:
            raise ConfigurationError(f"synthetic in the topology: {error.message}", hint=error.hint) from None
    return texts(SyntheticLanguage(found, seed), runs), words


def _drafts(quality: float | None, tokens_per_round: float | None) -> tuple[Quality, str]:
    from flowspec.synthetic.calibration import quality_for
    from flowspec.synthetic.guesses import Quality

    if quality is None:
        per_round = PAPER_TOKENS_PER_ROUND if tokens_per_round is None else tokens_per_round
        return quality_for(per_round), f"{per_round:g} tokens a round"
    if not 0.0 < quality < 1.0:
        raise ConfigurationError(f"quality is {quality:g}; it must be between 0 and 1")
    return Quality(quality), f"quality {quality:g}"


def _written(workload: Workload, recording: Path | None) -> tuple[int, ...]:
    """Tokens that each session writes; a recording may hold fewer than were asked for."""
    written = workload.written
    if min(written) < 2:
        raise ConfigurationError(
            f"{recording} holds a text of one token, which has no speed", hint="record texts of 2 tokens or more"
        )
    return written


# ---- what writes it --------------------------------------------------------------------------------------------------


def _pipe(
    topology: Topology | None,
    profile: str | None,
    stages: int | None,
    draft_layers: int,
    cores: int | None,
    token_bytes: int = 0,
) -> SimulatedPipe:
    from dataclasses import replace

    from flowspec.planning.sources import pipe_of_profile, pipe_of_topology
    from flowspec.topology.profiles import load_profile

    if topology is None:
        pipe = pipe_of_profile(load_profile(profile or PROFILE), stages, draft_layers=draft_layers)
    else:
        pipe = pipe_of_topology(topology, token_bytes=token_bytes, draft_layers=draft_layers)
    return replace(pipe, cores=cores)


def _token_bytes(topology: Topology | None) -> int:
    """Of a hidden state of the topology's model; an error where there is none that has any."""
    from flowspec.topology.topology import SYNTHETIC_MODEL

    hint = "write `bytes_per_token:` at the link, e.g. `bytes_per_token: 8KiB`"
    lacking = "nothing says how many bytes a hidden state has on a link with a rate"
    if topology is None:
        raise ConfigurationError(f"{lacking}: the profile does not", hint=hint)
    if topology.model == SYNTHETIC_MODEL:
        raise ConfigurationError(f"{lacking}: the model synthetic has none of its own", hint=hint)
    from flowspec.model.hub import resolve_model
    from flowspec.model.layout import DTYPE_BYTES
    from flowspec.model.weights import Checkpoint

    try:
        checkpoint = Checkpoint(resolve_model(topology.draft_node.model))
        return checkpoint.hidden_size * DTYPE_BYTES[topology.stages[0].dtype]
    except ModelError as error:
        hint += f"; or {error.hint}" if error.hint else ""
        raise ModelError(f"{lacking}: {error.message}", hint=hint) from None


def _swept(
    pipe: SimulatedPipe, workload: Workload, key: str, values: Sequence[float | None]
) -> list[tuple[SimulatedPipe, Workload]]:
    """What each value makes of them, made before anything is simulated, so that a wrong value is refused at once."""
    from flowspec.planning.estimate import changed

    return [(pipe, workload) if value is None else changed(pipe, workload, key, value) for value in values]


def _title(topology: Path | None, profile: str | None, stages: int, key: str) -> str:
    """The pipe in words; how long it is only where that is not swept."""
    from flowspec.cli.render import counted
    from flowspec.topology.profiles import load_profile

    if topology is None:
        title = load_profile(profile or PROFILE).name
    else:
        title = str(topology) + ("" if profile is None else f" with {load_profile(profile).name}")
    held = counted(stages, "stage")
    length = {"stages": "", "split": f", the model of {held}"}.get(key, f", {held}")
    return title + length


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
    table = Table(title=title, title_justify="left", width=WIDTH, box=SIMPLE_HEAD, padding=0)
    if rows[0].key:
        table.add_column(rows[0].key, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    names = ["tokens/s", "all/s" if several else "verdict", "x plain", "first", "round", "cost", "busy"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    # Of several sessions, their own speeds would not tell that some wait long before they begin.
    plain = {row.value: row.estimate.throughput for row in rows if row.estimate.policy == "autoregressive"}
    for number, row in enumerate(rows):
        found = row.estimate
        if number and row.value != rows[number - 1].value:
            table.add_section()
        ratio = f"{found.throughput / plain[row.value]:.2f}" if plain.get(row.value) else "-"
        first = found.time_to_first_token
        table.add_row(
            *([f"{row.value:g}"] if row.key else []),
            found.policy,
            f"{found.tokens_per_second:.2f}" + f" ±{found.error:.2f}" * (found.runs > 1),
            f"{found.throughput if several else found.tokens_per_verdict:.2f}",
            ratio,
            f"{first:.2f}" if first < 100 else f"{first:.0f}",
            f"{found.tokens_per_round:.1f}",
            f"{found.cost:.1f}",
            f"{max(found.occupancy):.0%}",
        )
    console.print(table)
    console.print(LEGEND)
