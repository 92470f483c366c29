"""`flowspec node`: one node of a topology file, on the device that runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.cli.logs import LogFormat, LogLevel
from flowspec.runtime.logs import configure_logs

if TYPE_CHECKING:
    from flowspec.model.weights import Checkpoint
    from flowspec.topology import Topology


def node(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology file.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which of its nodes this is.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the node would hold, and end.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without keys.")] = False,
    metrics: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve GET /metrics and /health on this port of this machine.")
    ] = None,
    log_format: LogFormat = "auto",
    log_level: LogLevel = "info",
) -> None:
    """Run one node of a topology file on this device.

    Ctrl-C once lets running requests end; twice stops at once.
    """
    from flowspec.cli.topology_file import load_topology

    loaded = load_topology(topology)
    if loaded.spare(name) is None:
        loaded.node(name)
    if insecure:
        loaded = loaded.replace(insecure=True)
    if metrics is not None:
        loaded = loaded.with_metrics(name, metrics)
    if dry_run:
        if loaded.spare(name) is None:
            _print_plan(loaded, name)
        else:
            _print_places(loaded, name)
        return
    configure_logs(log_format, log_level, node=name)
    from flowspec.cli.head_probe import probe_head, reads_features
    from flowspec.cli.render import Readiness
    from flowspec.cluster import NodeProgress
    from flowspec.roles.process import run_alone

    probes: list[asyncio.Task[None]] = []
    with Readiness([name]) as readiness:

        def report(state: str, done: int, total: int) -> None:
            readiness.update(NodeProgress(name, state, done, total))
            if state == "ready":
                typer.echo(f"ready: clients connect to {loaded.client_address}", err=True)
                if not probes and reads_features(loaded):
                    probes.append(asyncio.get_running_loop().create_task(probe_head(loaded)))

        run_alone(loaded, name, report)


def _print_places(topology: Topology, spare: str) -> None:
    """What a spare would hold in the place of each stage."""
    typer.echo(f"{spare}: holds nothing until a stage is lost; then, in its place:")
    for stage in topology.stages:
        _print_plan(topology.with_stand_ins([(stage.name, spare)]), stage.name)


def _print_plan(topology: Topology, name: str) -> None:
    """Ports, layers and bytes of a node, from the headers of its checkpoint: nothing is loaded."""
    from flowspec.cli.models import check_model
    from flowspec.cli.remarks import remarks_on
    from flowspec.model.device import find_device
    from flowspec.model.hub import resolve_model
    from flowspec.model.weights import Checkpoint
    from flowspec.topology.topology import SYNTHETIC_MODEL

    node = topology.node(name)
    ports = f"port {node.port}" if node.ports == 1 else f"ports {node.port}-{node.port + node.ports - 1}"
    lines = [f"{name}: {node.role} node on {node.host}, {ports}, device {node.device}, {node.dtype}"]
    if node.model == SYNTHETIC_MODEL:
        context = None
        lines.append("  model    synthetic: no weights, no cache; it takes emulated time alone")
    else:
        check_model(node.model)
        find_device(node.device, name)
        checkpoint = Checkpoint(resolve_model(node.model), topology.limits.context)
        context, drafts = checkpoint.context_limit, node.role == "draft"
        lines += _held_by_drafter(topology, checkpoint) if drafts else _held_by_stage(topology, name, checkpoint)
    lines += [f"  note     {each.key}: {each.found}" for each in remarks_on(topology, context)]
    typer.echo("\n".join(lines))


def _held_by_stage(topology: Topology, name: str, checkpoint: Checkpoint) -> list[str]:
    from flowspec.cli.render import size
    from flowspec.model.layout import block_bytes
    from flowspec.roles.introduction import layer_range
    from flowspec.topology.sections import show_layers

    first, end = layer_range(topology, name, checkpoint)
    node = topology.node(name)
    held = block_bytes(checkpoint, first, end, node.dtype, node.device)
    whole = block_bytes(checkpoint, 0, checkpoint.layer_count, node.dtype, node.device)
    parts = ["embedding"] * (first == 0) + ["final norm and LM head"] * (end == checkpoint.layer_count)
    return [
        f"  layers   {show_layers((first, end))} of 0-{checkpoint.layer_count - 1}"
        + "".join(f", {part}" for part in parts),
        f"  weights  {size(held.weights)}, {held.weights / whole.weights:.0%} of the model's {size(whole.weights)}",
        f"  cache    {size(held.row)} a row, {size(topology.limits.memory)} at most",
        f"  files    {', '.join(held.files)}",
    ]


def _held_by_drafter(topology: Topology, checkpoint: Checkpoint) -> list[str]:
    """The drafter's own copies of embedding and head are counted: it shares nothing with a stage."""
    from flowspec.cli.render import counted, size
    from flowspec.drafting.plan import plan_drafter

    plan = plan_drafter(topology, checkpoint)
    if not plan.weights:
        return [f"  drafter  {plan.kind}, no weights"]
    copied = f"; {size(plan.copied)} are the model's own" if plan.copied else ""
    lines = [
        f"  drafter  {plan.kind}, {counted(plan.layers, 'layer')}",
        f"  weights  {size(plan.weights)}, of which embedding, norm and head {size(plan.vocabulary)}{copied}",
        f"  cache    {size(plan.row)} a row",
    ]
    if plan.taps:
        lines.append(f"  reads    {', '.join(_tap(tap, checkpoint.layer_count) for tap in plan.taps)}")
    return lines


def _tap(tap: int, layers: int) -> str:
    from flowspec.wire.messages import FINAL

    if tap == FINAL:
        return "the state after the final norm"
    return "the output of the last layer" if tap == layers else f"the input of layer {tap}"
