"""Strangers at every port: what a pipeline with keys still writes while they knock.

A process of its own knocks: thousands of connections that say nothing, garbage and HTTP over plain TCP, ZeroMQ peers
without a key, with an unknown key, and with a client's key at the doors of nodes. The stages are emulated ones, as slow
as small devices. `met` judges the speed against that with nobody knocking anywhere. On one machine two things count in
it: what strangers do to the pipeline, and the cores that their process takes, which devices of their own would keep. So
the same strangers also knock at a twin that has no work; `ratio_twin` compares with that, and `met_twin` judges it.
The last line is one JSON object.

    python -m flowspec.bench.intruders [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from flowspec.bench.knocking import Knocks, knock
from flowspec.bench.speed import generate, heldout_prompts
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.runtime.loop import run
from flowspec.topology import Topology
from flowspec.transport.keyring import CLIENT
from flowspec.transport.keys import secret_path
from flowspec.wire.parameters import SamplingParameters

STAGES = 3
EMULATED = {"base_ms": 20.0, "per_token_ms": 0.5}
ALLOWED = 0.10
"""Share of the speed that strangers may cost."""

DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Intruders:
    """Speeds are medians, in tokens per second; ratios are medians over the rounds; `knocks` by kind."""

    rounds: int
    new_tokens: int
    alone: float
    """Nobody knocks."""
    twin: float
    """The strangers knock at the twin."""
    disturbed: float
    """They knock at the pipeline."""
    ratio: float
    """disturbed / alone: with the cores that the strangers take."""
    ratio_twin: float
    """disturbed / twin: without these."""
    same_tokens: int
    """Rounds in which the pipeline wrote the same tokens three times."""
    half_open: int
    """Connections that said nothing, all open at once while a disturbed run lasted."""
    knocks: dict[str, int]
    let_in: int
    """Requests of strangers that the coordinator took; must be 0."""
    refused: int
    """Peers and messages that the nodes counted as refused."""
    stranger_cores: float
    """Cores that the strangers' own process took while it knocked."""
    node_cores: dict[str, float]
    """Cores that all nodes together took, by whom was knocked at: medians."""

    @property
    def met(self) -> bool:
        return self.ratio >= 1 - ALLOWED and self._untouched

    @property
    def met_twin(self) -> bool:
        return self.ratio_twin >= 1 - ALLOWED and self._untouched

    @property
    def _untouched(self) -> bool:
        return self.let_in == 0 and self.same_tokens == self.rounds


def doors_of(topology: Topology) -> dict[int, str]:
    """Every port of the pipeline, with the public key of the node that listens there."""
    assert topology.keys is not None
    nodes = (topology.draft_node, *topology.stages)
    return {port: topology.keys.nodes[node.name] for node in nodes for port in range(node.port, node.port + node.ports)}


class Strangers:
    """The process that knocks, from `begin` to `end`."""

    def __init__(self, topology: Topology, half_open: int) -> None:
        assert topology.keys is not None
        key = secret_path(topology.keys.directory, CLIENT)
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        arguments = (theirs, doors_of(topology), str(key), topology.draft_node.port, half_open)
        self._process = context.Process(target=knock, args=arguments, daemon=True)
        self._process.start()

    def begin(self) -> None:
        """Returns when all silent connections are open."""
        self._tell("begin")

    def pause(self) -> None:
        self._tell("pause")

    def end(self) -> Knocks:
        self._line.send("end")
        knocks = _answer(self._line)
        self._process.join(DEADLINE_SECONDS)
        self._process.close()
        assert isinstance(knocks, Knocks)
        return knocks

    def _tell(self, word: str) -> None:
        self._line.send(word)
        _answer(self._line)


def _answer(line: Connection) -> object:
    if not line.poll(DEADLINE_SECONDS):
        raise TimeoutError("the process of the strangers does not answer")
    return line.recv()


CONDITIONS = ("alone", "twin", "disturbed")


async def measure_intruders(rounds: int = 8, new_tokens: int = 96, half_open: int = 2000) -> Intruders:
    """Each prompt under all three conditions, in an order that changes from prompt to prompt."""
    texts = heldout_prompts(rounds)
    async with contextlib.AsyncExitStack() as stack:
        cluster, twin = [
            await stack.enter_async_context(LocalCluster("demo", STAGES, emulate=EMULATED, secure=True))
            for _ in range(2)
        ]
        client = await stack.enter_async_context(cluster.client())
        strangers = {
            name: Strangers(target.topology, half_open) for name, target in (("disturbed", cluster), ("twin", twin))
        }
        await client.generate(texts[0], max_new_tokens=8)
        before = await client.status()
        runs = [await _round(cluster, client, strangers, text, new_tokens, number) for number, text in enumerate(texts)]
        knocks = {name: await asyncio.to_thread(each.end) for name, each in strangers.items()}["disturbed"]
        after = await client.status()
    rates = {name: [run[name].rate for run in runs] for name in CONDITIONS}
    return Intruders(
        rounds=rounds,
        new_tokens=new_tokens,
        **{name: median(rates[name]) for name in CONDITIONS},
        ratio=median(there / here for here, there in zip(rates["alone"], rates["disturbed"], strict=True)),
        ratio_twin=median(there / here for here, there in zip(rates["twin"], rates["disturbed"], strict=True)),
        same_tokens=sum(len({run[name].tokens for name in CONDITIONS}) == 1 for run in runs),
        half_open=knocks.half_open,
        knocks=knocks.by_kind,
        let_in=(after.finished + after.failed) - (before.finished + before.failed) - len(CONDITIONS) * rounds,
        refused=after.refused + sum(node.refused for node in after.nodes),
        stranger_cores=knocks.cores,
        node_cores={name: round(median(run[name].cores for run in runs), 2) for name in CONDITIONS},
    )


@dataclass(frozen=True, slots=True)
class _Run:
    rate: float
    tokens: tuple[int, ...]
    cores: float


async def _round(
    cluster: LocalCluster, client: Client, strangers: dict[str, Strangers], text: str, new_tokens: int, number: int
) -> dict[str, _Run]:
    runs = {}
    for name in (*CONDITIONS[number % 3 :], *CONDITIONS[: number % 3]):
        if name in strangers:
            await asyncio.to_thread(strangers[name].begin)
        began, computed = time.perf_counter(), _cpu_seconds(cluster)
        found = await generate(client, text, "flowspec", SamplingParameters(temperature=0.0), new_tokens)
        cores = (_cpu_seconds(cluster) - computed) / (time.perf_counter() - began)
        if name in strangers:
            await asyncio.to_thread(strangers[name].pause)
        assert found.stats is not None
        runs[name] = _Run(found.stats.tokens_per_second, tuple(found.token_ids), cores)
    return runs


def _cpu_seconds(cluster: LocalCluster) -> float:
    """Of all nodes since their start; 0 where there is no /proc."""
    ticks = 0
    for pid in cluster.processes.values():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what strangers at every port cost a pipeline.")
    parser.add_argument("--quick", action="store_true", help="fewer prompts, tokens and connections")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    found = run(measure_intruders(3, 32, 300) if quick else measure_intruders())
    print(f"{found.rounds} rounds of three runs of {found.new_tokens} tokens, {time.perf_counter() - began:.0f} s:")
    print(f"  nobody knocks         {found.alone:6.1f} tokens/s")
    print(f"  knocking at a twin    {found.twin:6.1f}")
    print(
        f"  knocking at the pipe  {found.disturbed:6.1f}   ratio {found.ratio:.3f}, to the twin {found.ratio_twin:.3f}"
    )
    print(f"  {found.half_open} silent connections at once; {found.knocks}")
    print(f"  {found.refused} refused, {found.let_in} let in")
    print(f"  cores: strangers {found.stranger_cores}, nodes {found.node_cores}")
    print(json.dumps({**asdict(found), "met": found.met, "met_twin": found.met_twin}))


if __name__ == "__main__":
    main()
