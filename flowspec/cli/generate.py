"""`flowspec generate`: one prompt, continued by a running pipeline or by one that is started for the call."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowspec.cli.requests import (
    check_counts,
    check_drafter,
    check_policy,
    options_of,
    policy_options,
    read_address,
    read_prompt,
)
from flowspec.cli.traces import check_trace, write_trace
from flowspec.errors import ConfigurationError, PipelineError
from flowspec.program import debugging

if TYPE_CHECKING:
    from flowspec.client import Client, Generation
    from flowspec.model.check import Report
    from flowspec.topology import Topology

STAGES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """Everything that was asked for, checked."""

    prompt: str
    options: dict[str, Any]
    address: str | None
    """Of a running pipeline; None: start the nodes of `topology` for the call."""
    topology: Topology | None
    check_model: str | None
    """What `--check` loads, when it is not told by a topology."""
    dtype: str | None
    connect_timeout: float
    key: Path | None
    as_json: bool
    check: bool
    trace: Path | None


def generate(
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The text to continue; - reads standard input.")
    ] = None,
    connect: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A running pipeline's address.")] = None,
    topology: Annotated[Path | None, typer.Option(metavar="FILE", help="The file of a running pipeline.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR", help="Start a local pipeline with this model.  [default: demo]")
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Stages of the local pipeline.  [default: 4]")] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Emulate these devices and links: a name, or a YAML file.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="flowspec, autoregressive, chunked, pruned, pipedec or lockstep.  [default: flowspec]"),
    ] = None,
    policy_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the policy; may be given often.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(help="Who drafts: auto, none, ngram, synthetic, causal-lm, eagle, eagle3 or hybrid.")
    ] = None,
    draft: Annotated[str | None, typer.Option(metavar="DIR", help="The model or head of the drafter.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to write.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most probable token.  [default: 0]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most probable; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this share of the probability; 1 is off.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep this share of the best probability; 0 is off.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given often.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare with the model run whole, in this process.")] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what all nodes did, for ui.perfetto.dev.")
    ] = None,
    connect_timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for the first answer; else the topology's, 10.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="FLOWSPEC_KEY", help="Your key file, where the pipeline asks for keys."),
    ] = None,
) -> None:
    """Continue a prompt: with --connect or --topology on a running pipeline, else on one started for the call."""
    from flowspec.runtime.loop import run
    from flowspec.topology import Timeouts

    options = options_of(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        chat=chat,
        policy=policy,
    )
    check_counts(stages=stages, connect_timeout=connect_timeout)
    check_policy(policy)
    asked = policy_options(policy, policy_option)
    if asked:
        options["policy_options"] = asked
    check_drafter(drafter)
    check_trace(trace)
    local = {"--stages": stages, "--profile": profile, "--drafter": drafter, "--draft": draft}
    # Beside a topology, which says it itself, it means nothing; a running pipeline is checked with it.
    local["--dtype"] = None if check and topology is None else dtype
    address, file = _target(connect, topology, dict(local), model, check)
    if address is None and file is None:
        file = _local_topology(model, stages, drafter, draft, dtype, profile)
    if connect_timeout is None:
        connect_timeout = (file.timeouts if file is not None else Timeouts()).connect
    code = run(
        _generate(
            Call(
                prompt=read_prompt(prompt),
                options=options,
                address=address,
                topology=file,
                check_model=model,
                dtype=dtype,
                connect_timeout=connect_timeout,
                key=key or _key_beside(file),
                as_json=as_json,
                check=check,
                trace=trace,
            )
        )
    )
    if code:
        raise typer.Exit(code)


def _target(
    connect: str | None, file: Path | None, local: dict[str, Any], model: str | None, check: bool
) -> tuple[str | None, Topology | None]:
    """The address of a running pipeline, and its topology where a file tells it; (None, None) for a local one."""
    if connect is None and file is None:
        return None, None
    if connect is not None and file is not None:
        raise ConfigurationError("--connect and --topology both name a running pipeline; give one of them")
    which = "--connect" if connect is not None else "--topology"
    wrong = [name for name, value in local.items() if value is not None]
    if model is not None and not (check and connect is not None):
        wrong.append("--model")
    if wrong:
        raise ConfigurationError(
            f"{', '.join(wrong)} cannot be given with {which}",
            hint="the nodes of a running pipeline were told by their topology file",
        )
    if connect is not None:
        return read_address(connect), None
    from flowspec.topology import Topology

    assert file is not None
    topology = Topology.load(file)
    return topology.client_address, topology


def _local_topology(
    model: str | None,
    stages: int | None,
    drafter: str | None,
    draft: str | None,
    dtype: str | None,
    profile: str | None,
) -> Topology:
    from flowspec.cli.models import check_models
    from flowspec.cluster import local_topology
    from flowspec.topology.profiles import load_profile

    if stages is None:
        stages = STAGES if profile is None else load_profile(profile).stages
    topology = local_topology(model or "demo", stages, drafter=drafter, draft=draft, dtype=dtype, profile=profile)
    check_models(topology)
    return topology


def _key_beside(topology: Topology | None) -> Path | None:
    """A client's key where the topology says that keys are."""
    if topology is None or topology.keys is None:
        return None
    from flowspec.transport.access import find_client_key

    return find_client_key(topology)


async def _generate(call: Call) -> int:
    from flowspec.cli.render import statistics_line
    from flowspec.printable import printable

    shown = printable if sys.stdout.isatty() else str
    async with _pipeline(call) as client:
        stream = client.stream(call.prompt, trace=call.trace is not None, **call.options)
        try:
            async for chunk in stream:
                if not call.as_json:
                    sys.stdout.write(shown(chunk.text))
                    sys.stdout.flush()
        finally:
            if not call.as_json and stream.generation.text:
                sys.stdout.write("\n")
                sys.stdout.flush()
        generation, started = stream.generation, stream.started
        model, dtype, context = call.check_model, call.dtype, None
        if call.check and call.topology is None:
            status = await client.status()
            model, dtype, context = model or status.model, dtype or status.nodes[0].dtype, status.context_limit
    if started is None or generation.stats is None:
        raise PipelineError("the coordinator ended the request before it had begun")
    if not call.as_json:
        line = statistics_line(generation.stats, generation.finish_reason or "?", started.sampling.seed)
        print(line, file=sys.stderr)
    if call.trace is not None:
        write_trace(call.trace, [generation])
    report = None
    if call.check:
        from flowspec.model.check import check_generation

        if call.topology is not None:
            model, dtype = call.topology.draft_node.model, call.topology.tail.dtype
            context = call.topology.limits.context
        assert model is not None
        assert dtype is not None
        report = check_generation(
            model,
            generation.prompt_token_ids,
            generation.token_ids,
            started.sampling,
            dtype=dtype,
            context=context,
        )
        print(report.text(), file=sys.stderr)
    if call.as_json:
        print(json.dumps(_as_values(generation, report)), flush=True)
    return 1 if report is not None and report.differences else 0


@contextlib.asynccontextmanager
async def _pipeline(call: Call) -> AsyncIterator[Client]:
    """A client of the running pipeline, or of a local one that lives as long as the call."""
    from flowspec.client import Client

    if call.address is not None:
        async with Client(call.address, connect_timeout=call.connect_timeout, key=call.key) as client:
            yield client
        return
    from flowspec.cli.render import Readiness
    from flowspec.cluster import LocalCluster

    assert call.topology is not None
    names = [call.topology.draft_node.name, *(stage.name for stage in call.topology.stages)]
    readiness = Readiness(names, quiet=True)
    cluster = LocalCluster(topology=call.topology, progress=readiness.update, debug=debugging())
    async with contextlib.AsyncExitStack() as stack:
        with readiness:
            await stack.enter_async_context(cluster)
        yield await stack.enter_async_context(cluster.client(connect_timeout=call.connect_timeout))


def _as_values(generation: Generation, report: Report | None) -> dict[str, Any]:
    assert generation.stats is not None
    values: dict[str, Any] = {
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "prompt_token_ids": list(generation.prompt_token_ids),
        "finish_reason": generation.finish_reason,
        "seed": generation.seed,
        "stats": dataclasses.asdict(generation.stats),
    }
    if report is not None:
        values["check"] = report.as_values()
    return values
