"""Strangers at every port: what a pipeline with keys still writes while they knock.

A process of its own knocks: thousands of connections that say nothing, garbage and HTTP over plain TCP, ZeroMQ peers
without a key, with an unknown key, and with a client's key at the doors of nodes. The stages are emulated ones, as slow
as small devices. Real strangers compute elsewhere, these on the cores of the nodes; so three conditions take turns:

    alone       nobody knocks
    elsewhere   the process takes as much of a core as it takes to knock, and knocks nowhere
    disturbed   it knocks

`ratio` = disturbed / elsewhere is what strangers on other machines cost, and what `met` judges: the nodes' own work for
each, and whatever it delays. `ratio_shared` = disturbed / alone has the strangers' own computing in it too. What the
nodes spend is also measured at rest, as time of their threads, by kind of stranger. The last line is one JSON object.

    python -m flowspec.bench.intruders [--quick | --rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.knocking import Begin, Burn, Knocks, Pause, knock
from flowspec.bench.speed import generate
from flowspec.bench.stranger_costs import NodeCosts, measure_costs, thread_seconds
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.program import run_program
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
SETTLE_SECONDS = 0.5
"""After strangers left, before anything else is measured."""


@dataclass(frozen=True, slots=True)
class Intruders:
    """Speeds are medians, in tokens per second; ratios are medians over the rounds; `knocks` by kind."""

    rounds: int
    new_tokens: int
    alone: float
    elsewhere: float
    disturbed: float
    ratio: float
    """disturbed / elsewhere."""
    ratio_shared: float
    """disturbed / alone."""
    same_tokens: int
    """Rounds in which the pipeline wrote the same tokens three times."""
    half_open: int
    """Connections that said nothing, all open at once while a disturbed run lasted."""
    knocks: dict[str, int]
    let_in: int
    """Requests of strangers that the coordinator took; must be 0."""
    refused: int
    """Peers and messages that the nodes counted as refused."""
    stranger_cores: dict[str, float]
    """Cores that the strangers' own process took, by condition: medians."""
    node_cores: dict[str, float]
    """Cores that all nodes together took, by condition: medians."""
    node_costs: NodeCosts

    @property
    def met(self) -> bool:
        return self.ratio >= 1 - ALLOWED and self.let_in == 0 and self.same_tokens == self.rounds


def doors_of(topology: Topology) -> dict[int, str]:
    """Every port of the pipeline, with the public key of the node that listens there."""
    assert topology.keys is not None
    nodes = (topology.draft_node, *topology.stages)
    return {port: topology.keys.nodes[node.name] for node in nodes for port in range(node.port, node.port + node.ports)}


class Strangers:
    """The process that knocks, for as long as a block of code runs."""

    def __init__(self, topology: Topology, half_open: int) -> None:
        assert topology.keys is not None
        key = secret_path(topology.keys.directory, CLIENT)
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        arguments = (theirs, doors_of(topology), str(key), topology.draft_node.port, half_open)
        self._process = context.Process(target=knock, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    async def __aenter__(self) -> Strangers:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._line.close()
        await asyncio.to_thread(self._process.join, DEADLINE_SECONDS)
        self._process.close()

    async def begin(self, word: Begin | Burn) -> None:
        await self._tell(word)

    async def pause(self) -> Knocks:
        """Returns when the nodes have had time to close what is gone."""
        knocks = await self._tell(Pause())
        await asyncio.sleep(SETTLE_SECONDS)
        assert isinstance(knocks, Knocks)
        return knocks

    async def _tell(self, word: Begin | Burn | Pause) -> object:
        self._line.send(word)
        if not await asyncio.to_thread(self._line.poll, DEADLINE_SECONDS):
            raise TimeoutError("the process of the strangers does not answer")
        return self._line.recv()


CONDITIONS = ("alone", "elsewhere", "disturbed")


async def measure_intruders(
    rounds: int = 8, new_tokens: int = 96, half_open: int = 2000, rest_seconds: float = 4.0
) -> Intruders:
    """Each prompt under all three conditions, in an order that changes from prompt to prompt."""
    texts = heldout_prompts(rounds)
    async with (
        LocalCluster("demo", STAGES, emulate=EMULATED, secure=True) as cluster,
        cluster.client() as client,
        Strangers(cluster.topology, half_open) as strangers,
    ):
        costs = await measure_costs(cluster, strangers, rest_seconds)
        # Not counted: what is done for the first time takes longer, and tells how much the strangers compute.
        first = await _run(cluster, client, strangers, texts[0], 8, Begin())
        before = await client.status()
        cores = [first.knocks.cores]
        runs = [await _round(cluster, client, strangers, text, new_tokens, n, cores) for n, text in enumerate(texts)]
        after = await client.status()
    rates = {name: [run[name].rate for run in runs] for name in CONDITIONS}
    knocks: Counter[str] = Counter()
    for each in runs:
        knocks.update(each["disturbed"].knocks.by_kind)
    return Intruders(
        rounds=rounds,
        new_tokens=new_tokens,
        **{name: median(rates[name]) for name in CONDITIONS},
        ratio=_ratio(rates["disturbed"], rates["elsewhere"]),
        ratio_shared=_ratio(rates["disturbed"], rates["alone"]),
        same_tokens=sum(len({run[name].tokens for name in CONDITIONS}) == 1 for run in runs),
        half_open=max(run["disturbed"].knocks.half_open for run in runs),
        knocks=dict(knocks),
        let_in=(after.finished + after.failed) - (before.finished + before.failed) - len(CONDITIONS) * rounds,
        refused=after.refused + sum(node.refused for node in after.nodes),
        stranger_cores=_medians(runs, lambda run: run.knocks.cores),
        node_cores=_medians(runs, lambda run: run.cores),
        node_costs=costs,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    rate: float
    tokens: tuple[int, ...]
    cores: float
    knocks: Knocks


def _ratio(upper: list[float], lower: list[float]) -> float:
    return median(one / other for one, other in zip(upper, lower, strict=True))


def _medians(runs: list[dict[str, _Run]], figure: Callable[[_Run], float]) -> dict[str, float]:
    return {name: round(median(figure(run[name]) for run in runs), 3) for name in CONDITIONS}


async def _round(
    cluster: LocalCluster,
    client: Client,
    strangers: Strangers,
    text: str,
    new_tokens: int,
    number: int,
    cores: list[float],
) -> dict[str, _Run]:
    """`cores` are those that the strangers took so far; that of this round comes behind them."""
    runs = {}
    for name in (*CONDITIONS[number % 3 :], *CONDITIONS[: number % 3]):
        words: dict[str, Begin | Burn] = {"alone": Begin(()), "elsewhere": Burn(median(cores)), "disturbed": Begin()}
        runs[name] = await _run(cluster, client, strangers, text, new_tokens, words[name])
    cores.append(runs["disturbed"].knocks.cores)
    return runs


async def _run(
    cluster: LocalCluster, client: Client, strangers: Strangers, text: str, new_tokens: int, word: Begin | Burn
) -> _Run:
    await strangers.begin(word)
    began, computed = time.perf_counter(), sum(thread_seconds(cluster).values())
    found = await generate(client, text, "flowspec", SamplingParameters(temperature=0.0), new_tokens)
    cores = (sum(thread_seconds(cluster).values()) - computed) / (time.perf_counter() - began)
    knocks = await strangers.pause()
    assert found.stats is not None
    return _Run(found.stats.tokens_per_second, tuple(found.token_ids), cores, knocks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what strangers at every port cost a pipeline.")
    parser.add_argument("--quick", action="store_true", help="fewer prompts, tokens and connections")
    parser.add_argument("--rounds", type=int, default=8, help="prompts, each under all three conditions")
    given = parser.parse_args()
    began = time.perf_counter()
    found = run(measure_intruders(3, 32, 300, 1.0) if given.quick else measure_intruders(given.rounds))
    print(f"{found.rounds} rounds of three runs of {found.new_tokens} tokens, {time.perf_counter() - began:.0f} s:")
    print(f"  nobody knocks          {found.alone:6.1f} tokens/s")
    print(f"  computing elsewhere    {found.elsewhere:6.1f}")
    print(f"  knocking at the pipe   {found.disturbed:6.1f}")
    print(f"  ratio {found.ratio:.3f} with strangers on other machines, {found.ratio_shared:.3f} on these cores")
    print(f"  cores of the strangers {found.stranger_cores}, of all nodes {found.node_cores}")
    print(f"  {found.half_open} silent connections at once; {found.knocks}")
    print(f"  {found.refused} refused, {found.let_in} let in")
    costs = found.node_costs
    print(f"at rest, all nodes together spend {100 * costs.cores:.1f} % of a core on strangers,")
    print(f"{costs.knocks_per_second:.0f} of which come a second; on each:")
    for each in costs.by_kind:
        print(f"  {each.kind:12} {each.io_ms:.2f} ms in the I/O thread and {each.loop_ms:.2f} ms in Python")
    print(json.dumps({**asdict(found), "met": found.met}))
    if found.let_in or found.same_tokens < found.rounds:
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
