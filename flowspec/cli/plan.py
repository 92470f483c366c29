"""`flowspec plan`: which node of a topology should hold which layers, who should draft, and how fast that will be."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowspec.errors import ConfigurationError, TopologyError
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND

if TYPE_CHECKING:
    from rich.console import Console

    from flowspec.cli.inventory import Inventory
    from flowspec.planning.planner import Candidate, Plan
    from flowspec.schedule.options import PolicyOptions
    from flowspec.topology import Topology

WIDTH = 80
SHOWN = 6
"""Alternatives that the table shows, or as many as there are numbers of stages."""


def plan(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology file.", show_default=False)],
    measure: Annotated[bool, typer.Option("--measure", help="Measure a layer on this machine.")] = False,
    keep_drafter: Annotated[
        bool, typer.Option("--keep-drafter", help="The draft node stays where the topology has it.")
    ] = False,
    latency: Annotated[float | None, typer.Option(help="Milliseconds of links that are not described.")] = None,
    rate: Annotated[float | None, typer.Option(help="Their Mbit/s.")] = None,
    tokens_per_round: Annotated[
        float, typer.Option(help="How good drafts are: what a round of chunked writes.")
    ] = PAPER_TOKENS_PER_ROUND,
    tokens: Annotated[int, typer.Option(help="Tokens that a simulated request writes.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Divide the layers of a topology's model among its nodes, and predict the speed. Nothing is started."""
    from flowspec.cli.inventory import take_inventory
    from flowspec.cli.topology_file import load_topology
    from flowspec.planning import planner
    from flowspec.planning.estimate import Workload
    from flowspec.planning.language import SyntheticLanguage
    from flowspec.schedule.continuous import ContinuousSettings
    from flowspec.schedule.options import as_text, read_options
    from flowspec.synthetic.calibration import quality_for

    if tokens < 2:
        raise ConfigurationError(f"tokens is {tokens}; it must be 2 or more")
    if latency is not None and not 0.0 <= latency < inf:
        raise ConfigurationError(f"latency is {latency:g} ms; it must be finite, and 0 or more")
    if rate is not None and not 0.0 < rate < inf:
        raise ConfigurationError(f"rate is {rate:g} Mbit/s; it must be finite, and more than 0")
    loaded = load_topology(topology)
    written = as_text(loaded.policy_options)
    options: dict[str, PolicyOptions] = {loaded.policy: read_options(loaded.policy, written)}
    known = take_inventory(
        loaded,
        measure=measure,
        latency=None if latency is None else latency / 1e3,
        rate=None if rate is None else rate * 1e6 / 8,
    )
    workload = Workload.synthetic(
        SyntheticLanguage(quality_for(tokens_per_round)),
        2,
        tokens=tokens,
        settings=ContinuousSettings.with_width(loaded.drafter.width),
    )
    present = loaded.draft_node.name
    drafter = present if keep_drafter else None
    found = planner.plan(
        known.devices, known.model, known.links, workload, drafter=drafter, present=present, options=options
    )
    assumed = list(known.assumed)
    if loaded.policy_options and loaded.policy not in planner.PLANNED:
        assumed.append(f"the usual options of {' and '.join(planner.PLANNED)}: policy_options are for {loaded.policy}")
    assumed += _times_of_layers(loaded, found.chosen)
    known = replace(known, assumed=tuple(assumed))
    if as_json:
        print(json.dumps(_values(loaded, known, found)), flush=True)
        return
    _print(loaded, known, found)


def _times_of_layers(topology: Topology, chosen: Candidate) -> list[str]:
    """Where a stage takes another time than it emulates, words that say so of the one that differs most."""
    from flowspec.planning.planner import NOISE
    from flowspec.schedule.window import TYPICAL_TOKENS
    from flowspec.topology.profiles import emulation_of

    entries = {entry.name: entry.model_copy(update={"role": "stage"}) for entry in topology.nodes}
    differ = []
    for stage in chosen.stages:
        entry = entries[stage.device.name]
        emulated = emulation_of(entry, topology.profile)
        if emulated is None:
            continue
        seconds = (emulated.base_ms + emulated.per_token_ms * TYPICAL_TOKENS) / 1e3
        apart = abs(stage.seconds - seconds) / max(stage.seconds, seconds, 1e-9)
        if apart > NOISE:
            own = entry.emulate.profile or "" if entry.emulate is not None else topology.profile
            says = f"profile {own}" if own else "its `emulate`"
            differ.append((apart, stage, seconds, says))
    if not differ:
        return []
    _, stage, seconds, says = max(differ, key=lambda each: each[0])
    held = f"{stage.device.name} with {stage.end - stage.first}"
    return [
        f"a stage takes the time of its layers: {held} takes {stage.seconds * 1e3:.1f} ms for {TYPICAL_TOKENS} tokens. "
        f"flowspec simulate, and a node that emulates, take {seconds * 1e3:.1f} ms, as {says} says, whatever it holds"
    ]


def _values(topology: Topology, known: Inventory, found: Plan) -> dict[str, Any]:
    return {
        "assumed": list(known.assumed),
        "uncertain": list(known.uncertain),
        "chosen": _candidate_values(found.chosen),
        "alternatives": [_candidate_values(each) for each in found.candidates[1:]],
        "fragment": fragment(topology, found.chosen),
    }


def _candidate_values(candidate: Candidate) -> dict[str, Any]:
    return {
        "draft": candidate.draft.name,
        "stages": [
            {
                "node": stage.device.name,
                "layers": [stage.first, stage.end - 1],
                "bytes": stage.bytes,
                "memory": stage.device.memory,
                "seconds": stage.seconds,
            }
            for stage in candidate.stages
        ],
        "bottleneck": candidate.bottleneck,
        "policy": candidate.best.policy,
        "estimates": [each.as_values() for each in candidate.estimates],
    }


def fragment(topology: Topology, chosen: Candidate) -> str:
    """`policy` and `nodes` of the topology as the plan has them, in YAML; nodes that it leaves out are left out. So are
    options of another policy, which the plan's would refuse."""
    from flowspec.topology.document import write_document
    from flowspec.topology.sections import show_layers

    written = {entry["name"]: entry for entry in topology.as_values()["nodes"]}
    nodes = [{**written[chosen.draft.name], "role": "draft"}]
    nodes[0].pop("layers", None)
    for stage in chosen.stages:
        nodes.append({**written[stage.device.name], "role": "stage", "layers": show_layers((stage.first, stage.end))})
    policy: dict[str, Any] = {"policy": chosen.best.policy}
    if topology.policy_options and topology.policy != chosen.best.policy:
        policy["policy_options"] = {}
    return write_document({**policy, "nodes": nodes})


# ---- on a terminal ---------------------------------------------------------------------------------------------------


def _print(topology: Topology, known: Inventory, found: Plan) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    chosen = found.chosen
    _print_nodes(console, known, chosen)
    best = chosen.best
    console.print(f"{best.policy}: {best.tokens_per_second:.1f} tokens/s predicted; bottleneck: {chosen.bottleneck}")
    for words in known.assumed:
        console.print(f"assumed: {words}")
    for words in known.uncertain:
        console.print(f"uncertain: {words}")
    _print_alternatives(console, found)
    _print_advice(console, topology, found)
    console.print("\nfor the topology file:\n")
    print(fragment(topology, chosen), end="", flush=True)
    problem = _objection(topology, chosen)
    if problem:
        console.print(f"\nbefore that is a topology: {problem}", markup=False, soft_wrap=True)


def _objection(topology: Topology, chosen: Candidate) -> str:
    """What is wrong with the fragment in place of the topology's own nodes; empty when nothing is."""
    import yaml

    from flowspec.topology import Topology as Checked
    from flowspec.topology.document import Document

    try:
        Checked.from_document(Document({**topology.as_values(), **yaml.safe_load(fragment(topology, chosen))}))
    except TopologyError as error:
        return str(error)
    return ""


def _print_nodes(console: Console, known: Inventory, chosen: Candidate) -> None:
    from rich.table import Table

    from flowspec.cli.render import size
    from flowspec.schedule.window import TYPICAL_TOKENS
    from flowspec.topology.sections import show_layers

    table = Table(title=f"plan: {known.model.layers} layers", title_justify="left", width=WIDTH)
    table.add_column("node")
    table.add_column("holds")
    for name in ("memory needed", "it has", f"{TYPICAL_TOKENS} tokens take", "busy"):
        table.add_column(name, justify="right")
    draft = chosen.pipe.draft
    best = chosen.best
    table.add_row(
        chosen.draft.name,
        "the drafter",
        size(known.model.draft_bytes),
        size(chosen.draft.memory) if chosen.draft.memory else "-",
        f"{draft.of(1) * 1e3:.1f} ms a step",
        f"{best.drafter_occupancy:.0%}",
    )
    for stage, busy in zip(chosen.stages, best.occupancy, strict=True):
        table.add_row(
            stage.device.name,
            f"layers {show_layers((stage.first, stage.end))}",
            size(stage.bytes),
            size(stage.device.memory) if stage.device.memory else "-",
            f"{stage.seconds * 1e3:.1f} ms",
            f"{busy:.0%}",
        )
    console.print(table)


def _print_alternatives(console: Console, found: Plan) -> None:
    from rich.table import Table

    table = Table(title="alternatives, in tokens/s", title_justify="left", width=WIDTH)
    table.add_column("draft")
    table.add_column("stages")
    for estimate in found.chosen.estimates:
        table.add_column(estimate.policy, justify="right")
    for candidate in found.shown(SHOWN):
        stages = ", ".join(stage.device.name for stage in candidate.stages)
        if len(candidate.stages) > 8:
            stages = f"{len(candidate.stages)} nodes"
        table.add_row(candidate.draft.name, stages, *(f"{each.tokens_per_second:.2f}" for each in candidate.estimates))
    console.print(table)


def _print_advice(console: Console, topology: Topology, found: Plan) -> None:
    chosen = found.chosen
    absent = [
        node.name
        for node in (topology.draft_node, *topology.stages)
        if node.name != chosen.draft.name and all(node.name != stage.device.name for stage in chosen.stages)
    ]
    if absent:
        console.print(f"faster without {', '.join(absent)}: every stage more is one more on each token's way")
    if chosen.draft.name != topology.draft_node.name:
        console.print(f"faster with {chosen.draft.name} as the draft node, in place of {topology.draft_node.name}")
    if chosen.best.policy == "autoregressive":
        console.print("faster without speculation: write `policy: autoregressive`")
