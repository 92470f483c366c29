"""`flowspec doctor`: what is wrong with a topology, its devices and its links, and what to do about each finding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowspec.cli.checkup import Finding, State

if TYPE_CHECKING:
    from flowspec.topology import Topology
    from flowspec.wire.messages import Diagnosis, LinkFacts, NodeFacts, SpareFacts

CLOCK_SECONDS = 1.0
"""By how much the clocks of two nodes may differ before logs of both are hard to read together."""

WIDTH, INDENT = 80, 14


def doctor(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="The topology file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="FLOWSPEC_KEY", help="A client's key file, where there are keys."),
    ] = None,
    payload: Annotated[int, typer.Option(help="Bytes of a message that measures a link.")] = 2**20,
    connect_timeout: Annotated[float, typer.Option(help="Seconds to wait for a running pipeline.")] = 2.0,
) -> None:
    """Look for what is wrong, and say what to do.

    On each device: versions, keys, names, ports, model and memory of its nodes. Where the pipeline runs: also versions,
    clocks, memory and models of all nodes, spares included, and round trip and rate of every link. Ends with 1 when
    something is bad.
    """
    from flowspec.cli.requests import check_counts
    from flowspec.cli.topology_file import load_topology
    from flowspec.runtime.loop import run

    check_counts(connect_timeout=connect_timeout)
    loaded = load_topology(topology)
    findings = run(_examine(loaded, key, payload, connect_timeout))
    bad = sum(finding.state == "bad" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    if as_json:
        print(json.dumps({"bad": bad, "warnings": warnings, "findings": [asdict(finding) for finding in findings]}))
    else:
        _print(findings, bad, warnings)
    if bad:
        raise typer.Exit(1)


async def _examine(topology: Topology, key: Path | None, payload: int, seconds: float) -> list[Finding]:
    from flowspec.cli import checkup
    from flowspec.topology.hosts import is_this_machine

    here = {node.name for node in checkup.everybody(topology) if is_this_machine(node.host)}
    asked, diagnosis = await _ask(topology, key, payload, seconds)
    running = {facts.node for facts in diagnosis.nodes} if diagnosis else set()
    spares = diagnosis.spares if diagnosis else ()
    listening = running | {spare.facts.node for spare in spares if spare.place is not None}
    running |= {spare.facts.node for spare in spares}
    findings = [
        *checkup.check_versions(topology),
        *checkup.check_keys(topology, here),
        *checkup.check_names(topology),
        *checkup.check_ports(topology, here, listening),
        *checkup.check_models(topology, here, running),
        *_remarks(topology, here),
        asked,
    ]
    if diagnosis is None or diagnosis.waits_for:
        findings += await checkup.check_reach(topology, here)
    if diagnosis is not None:
        findings += judge(topology, diagnosis)
    return findings


def _remarks(topology: Topology, here: set[str]) -> Iterator[Finding]:
    """What the topology says in vain. What is wrong with its model is another's business."""
    from flowspec.cli.checkup import nodes_of
    from flowspec.cli.remarks import remarks_on
    from flowspec.errors import FlowspecError
    from flowspec.model.target import open_target

    context = None
    node = next((node for node in nodes_of(topology) if node.name in here), None)
    if node is not None:
        with suppress(FlowspecError):
            context = open_target(topology, node.model).context_limit
    for remark in remarks_on(topology, context):
        yield Finding("topology", remark.key, "warning", remark.found, remark.advice)


async def _ask(topology: Topology, key: Path | None, payload: int, seconds: float) -> tuple[Finding, Diagnosis | None]:
    """The running pipeline's own diagnosis, None when it cannot be had; and what that means."""
    from flowspec.client import Client
    from flowspec.errors import FlowspecError
    from flowspec.transport.access import find_client_key

    key = key or find_client_key(topology)
    address = topology.client_address
    if topology.keys is not None and key is None:
        advice = "give a client's --key to have the running nodes examined, too"
        return Finding("pipeline", address, "warning", "not asked: no client's key lies here", advice), None
    try:
        async with Client(address, key=key, connect_timeout=seconds) as client:
            diagnosis = await client.diagnose(payload=payload)
    except FlowspecError as error:
        advice = "start its nodes to have links and memory examined, too"
        return Finding("pipeline", address, "warning", f"does not answer: {error.message}", advice), None
    if diagnosis.waits_for:
        advice = "look on these devices: does the node run, and what does it say?"
        return Finding("pipeline", address, "bad", f"waits for {diagnosis.waits_for}", advice), diagnosis
    return Finding("pipeline", address, "ok", "runs, and every channel is proven"), diagnosis


def judge(topology: Topology, diagnosis: Diagnosis) -> list[Finding]:
    """What the running nodes said of themselves and of their links, against each other."""
    from flowspec.cli.checkup import nodes_of

    first = diagnosis.nodes[0]
    findings = []
    for facts in diagnosis.nodes:
        findings += _judge_node(topology, facts, first)
    answered = {facts.node for facts in diagnosis.nodes}
    if not diagnosis.waits_for:
        for node in nodes_of(topology):
            if node.name not in answered:
                advice = "it is busy or hangs: look at its log, start it again"
                findings.append(Finding("nodes", node.name, "bad", "did not answer in time", advice))
    heard = {spare.facts.node: spare for spare in diagnosis.spares}
    for entry in topology.spares:
        findings += _judge_spare(topology, entry.name, heard.get(entry.name), first)
    links = [*diagnosis.links, *(link for spare in diagnosis.spares for link in spare.links)]
    return findings + [_judge_link(link) for link in links if not diagnosis.waits_for]


def _judge_spare(topology: Topology, name: str, spare: SpareFacts | None, first: NodeFacts) -> list[Finding]:
    if spare is None:
        advice = f"start it (flowspec node TOPOLOGY {name}) or look at its log: it could not stand in for anybody"
        return [Finding("spares", name, "bad", "the draft node does not hear it", advice)]
    if spare.trouble:
        return [Finding("spares", name, "bad", f"could be no stage: {spare.trouble}", "mend that on its device")]
    if spare.place is None:
        stands = Finding("spares", name, "ok", "stands by")
    else:
        advice = f"start {spare.place} again: it waits until {name} is stopped"
        stands = Finding("spares", name, "warning", f"stands in for {spare.place}, so it is nobody's spare", advice)
    return [stands, *_judge_node(topology, spare.facts, first, spare.weights)]


def _judge_node(topology: Topology, facts: NodeFacts, first: NodeFacts, weights: int = 0) -> list[Finding]:
    """`weights`: bytes that the node may still have to load."""
    from flowspec.cli.render import size

    node = facts.node
    found = f"flowspec {facts.flowspec}, python {facts.python}, torch {facts.torch}, zeromq {facts.zeromq}"
    state: State = "ok"
    advice = ""
    if facts.flowspec != first.flowspec:
        state, advice = "bad", f"install flowspec {first.flowspec} there, as on {first.node}"
    elif facts.torch.split("+")[0] != first.torch.split("+")[0]:
        state, advice = "warning", f"torch {first.torch} as on {first.node} would round the same way"
    findings = [Finding("versions", node, state, found, advice)]
    if (facts.fingerprint, facts.tokenizer) == (first.fingerprint, first.tokenizer):
        findings.append(
            Finding("model", node, "ok", f"model {facts.fingerprint[:12]}, tokenizer {facts.tokenizer[:12]}")
        )
    else:
        advice = f"copy the model of {first.node} there"
        findings.append(Finding("model", node, "bad", f"another model or tokenizer than {first.node}", advice))
    if abs(facts.clock) > CLOCK_SECONDS:
        found = f"its clock is {abs(facts.clock):.1f} s {'ahead of' if facts.clock > 0 else 'behind'} {first.node}'s"
        findings.append(Finding("clock", node, "warning", found, "have both set theirs over the network (NTP)"))
    else:
        findings.append(Finding("clock", node, "ok", f"{facts.clock * 1000:+.1f} ms against {first.node}"))
    if facts.memory_total:
        free = f"{size(facts.memory_free)} of {size(facts.memory_total)} are free"
        found = f"{free}, caches may take {size(topology.limits.memory)}"
        scarce = facts.memory_free < weights + topology.limits.memory
        advice = "lower limits.memory, or give this device fewer layers" if scarce else ""
        state = "warning" if scarce else "ok"
        if weights:
            found = f"{free}, the largest block takes {size(weights)} and caches {size(topology.limits.memory)}"
            advice = "lower limits.memory, or divide the layers more evenly" if scarce else ""
            state = "bad" if facts.memory_free < weights else state
        findings.append(Finding("memory", node, state, found, advice))
    if facts.encrypted != (topology.keys is not None):
        advice = "give all devices the same topology file, and start the nodes again"
        findings.append(Finding("keys", node, "bad", "runs with another topology file, as far as keys go", advice))
    return findings


def _judge_link(link: LinkFacts) -> Finding:
    subject = f"{link.sender} > {link.receiver}"
    if link.round_trip is None:
        advice = f"can {link.receiver}'s port be reached from {link.sender}'s device?"
        return Finding("link", subject, "bad", "no connection could be made", advice)
    rate = f"{link.rate * 8 / 1e6:,.0f} Mbit/s" if link.rate is not None else "rate not measured"
    return Finding("link", subject, "ok", f"round trip {link.round_trip * 1000:.2f} ms, {rate}")


def _print(findings: list[Finding], bad: int, warnings: int) -> None:
    """In 80 columns: what is in order in one line, what is not with what to do about it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width = min(WIDTH, console.width)
    marks = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "bad": ("BAD ", "red bold")}
    for finding in findings:
        head = Text.assemble(marks[finding.state], f" {finding.check:<9}")
        told = [f"{finding.subject}: {finding.found}", *([f"-> {finding.advice}"] if finding.advice else [])]
        for part in (part for text in told for part in Text(text).wrap(console, width - INDENT)):
            part.rstrip()
            console.print(head + part, soft_wrap=True)
            head = Text(" " * INDENT)
    console.print(f"{len(findings)} checks: {bad} bad, {warnings} to look at" if bad or warnings else "all is well")
