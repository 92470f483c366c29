"""Does anything get lost when nodes and links fail? `python -m flowspec.bench.faults [--faults 500] [--seed 0]`.

A pipeline of a small random model in float64 serves streams, greedy and sampled, without a break; again and again,
while some stream has tokens in flight, something fails. First with processes and sockets: stages killed, frozen for
longer than the heartbeat deadline, stopped; the coordinator killed; links cut. Then in one process: broadcasts lost,
doubled, delayed and reordered, messages lost in the pipe, stages silently replaced, the coordinator stopped.

Every stream has to be what it is without faults, or to end with an error of `flowspec.errors` behind the beginning of
that. The last line is one JSON object. Linux only. The exit code is 1 when a stream was wrong or hung, or something
leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowspec.bench.cut_links import CutLinks, addressed_through_proxies
from flowspec.bench.fault_kinds import TIMEOUTS, MemoryFaults, ProcessFaults
from flowspec.bench.fault_streams import CASES, FaultStreams, Tally, asked
from flowspec.bench.random_model import write_random_model
from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster
from flowspec.errors import InvariantViolation
from flowspec.forking import fork_server_ready, start_fork_server
from flowspec.program import run_program
from flowspec.runtime.loop import run
from flowspec.topology import Topology
from flowspec.transport.memory import MemoryTransport

STAGES = 3
PROCESS_SHARE = 0.4
"""Of all faults, those that befall processes and links."""

EMPTY_SECONDS = 20.0
"""Within which the nodes must have freed everything when the last stream has ended."""

SALVO_SHARE = 0.25
"""Of all faults, those after which nobody waits for the streams to move."""

SALVO_SECONDS = 1.0
"""Longest pause after those."""


@dataclass(slots=True)
class Outcome:
    """Of one part of the campaign, or of all of it."""

    tally: Tally = field(default_factory=Tally)
    by_kind: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        mine, theirs = self.tally, other.tally
        mine.streams += theirs.streams
        mine.exact += theirs.exact
        mine.documented_errors += theirs.documented_errors
        mine.wrong += theirs.wrong
        mine.hung += theirs.hung
        mine.errors += theirs.errors
        self.by_kind.update(other.by_kind)
        self.leaks += other.leaks

    @property
    def sound(self) -> bool:
        return not (self.tally.wrong or self.tally.hung or self.leaks)

    def as_values(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "faults": sum(self.by_kind.values()),
            "streams": tally.streams,
            "exact": tally.exact,
            "documented_errors": tally.documented_errors,
            "wrong": tally.wrong,
            "hung": tally.hung,
            "leaked": len(self.leaks),
            "by_kind": dict(sorted(self.by_kind.items())),
        }


@dataclass(frozen=True, slots=True)
class Possessions:
    """What this process has: a campaign must not leave more than it found."""

    tasks: int
    threads: int
    files: int

    @classmethod
    def now(cls) -> Possessions:
        return cls(len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd")))

    def left_by(self, later: Possessions) -> list[str]:
        pairs = (("tasks", self.tasks, later.tasks), ("threads", self.threads, later.threads))
        files = (("open files, sockets among them", self.files, later.files),)
        return [f"{after - before} {what}" for what, before, after in (*pairs, *files) if after > before]


def kinds(shares: dict[str, int], count: int, dice: random.Random) -> list[str]:
    """`count` kinds in random order, in these shares, each at least once where there are enough."""
    whole = sum(shares.values())
    drawn = list(shares)
    dice.shuffle(drawn)
    drawn += [kind for kind, share in shares.items() for _ in range(round(share * count / whole) - 1)]
    drawn = drawn[:count]
    drawn += [dice.choice(list(shares)) for _ in range(count - len(drawn))]
    dice.shuffle(drawn)
    return drawn


def topology_of(model: Path) -> Topology:
    each_stage = {"emulate": {"base_ms": 1.0}}  # long enough for a fault to come between two tokens
    limits = {"sessions": 4}
    return Topology.local(
        str(model), STAGES, dtype="float64", drafter="ngram", timeouts=TIMEOUTS, limits=limits, each_stage=each_stage
    )


async def undisturbed(client: Client) -> list[Generation]:
    return [await client.generate(**asked(case)) for case in CASES]


async def campaign(
    connect: Callable[[], Client], faults: ProcessFaults | MemoryFaults, drawn: Sequence[str], dice: random.Random
) -> Outcome:
    """Streams without a break, and one fault after another in the middle of them; without any, nothing but a visit."""
    outcome = Outcome()
    async with connect() as client:
        if not drawn:
            return outcome
        truth = await undisturbed(client)
    streams = FaultStreams(connect, truth, dice)
    outcome.tally = streams.tally
    running = asyncio.create_task(streams.run(), name="streams")
    try:
        for number, kind in enumerate(drawn, start=1):
            await _while(running, streams.in_the_middle())
            await faults.inflict(kind)
            outcome.by_kind[kind] += 1
            if dice.random() < SALVO_SHARE:
                # The next one comes soon after this, perhaps in the middle of a replay.
                await asyncio.sleep(dice.uniform(0.0, SALVO_SECONDS))
                continue
            await _while(running, streams.all_moved())
            faults.quiet()
            await _while(running, streams.one_ended())
            _say(f"\r{number}/{len(drawn)} {kind:<20} {streams.tally.exact} exact")
    finally:
        faults.quiet()
        streams.stop()
        await running
    _say("\n")
    async with connect() as client:
        outcome.leaks += await _unfreed(client)
    return outcome


async def _while(running: asyncio.Task[None], waited: Coroutine[Any, Any, None]) -> None:
    """Wait for something that only comes while `running` goes on; raises what has ended that."""
    waiting = asyncio.ensure_future(waited)
    try:
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            running.result()
            raise InvariantViolation("the streams ended before the campaign did")
        waiting.result()
    finally:
        waiting.cancel()


async def _unfreed(client: Client) -> list[str]:
    """What the nodes still hold after their last session."""
    limit = time.monotonic() + EMPTY_SECONDS
    while time.monotonic() < limit:
        status = await client.status()
        held = [f"{node.rows} rows at {node.name}" for node in status.nodes if node.rows]
        held += [f"{status.sessions} sessions"] if status.sessions else []
        if status.ready and not held:
            return []
        await asyncio.sleep(TIMEOUTS["heartbeat_interval"])
    return held or ["the pipe did not become ready again"]


async def among_processes(model: Path, count: int, dice: random.Random) -> Outcome:
    topology = addressed_through_proxies(topology_of(model))
    start_fork_server()
    await fork_server_ready()
    before = children()
    async with CutLinks(topology) as links, LocalCluster(topology=topology, restarts=1_000_000) as cluster:
        faults = ProcessFaults(cluster, links, dice)
        outcome = await campaign(
            lambda: Client(cluster.address), faults, kinds(ProcessFaults.shares, count, dice), dice
        )
    outcome.leaks += [f"process {process}" for process in await _survivors(before)]
    return outcome


async def in_memory(model: Path, count: int, dice: random.Random) -> Outcome:
    topology, transport = topology_of(model), MemoryTransport(seed=dice.randrange(2**32))
    async with MemoryFaults(topology, transport, dice) as faults:
        return await campaign(
            lambda: Client(topology.client_address, transport=transport),
            faults,
            kinds(MemoryFaults.shares, count, dice),
            dice,
        )


def children() -> set[int]:
    """Processes that nodes are forked from, and the nodes."""
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            new = {int(word) for word in task.read_text().split()} - found
            found |= new
            waiting += new
    return found


async def _survivors(before: set[int]) -> set[int]:
    """Nodes that are still there a little after their cluster was closed."""
    limit = time.monotonic() + EMPTY_SECONDS
    while left := children() - before:
        if time.monotonic() > limit:
            return left
        await asyncio.sleep(TIMEOUTS["heartbeat_interval"])
    return set()


async def measure(faults: int, seed: int) -> Outcome:
    """The whole campaign."""
    dice = random.Random(seed)
    outcome = Outcome()
    among = round(faults * PROCESS_SHARE)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        model = await asyncio.to_thread(write_random_model, Path(folder))
        # What the first cluster and the first pipeline leave for good (the fork server, imports) is no leak.
        if among:
            await among_processes(model, 0, dice)
        await in_memory(model, 0, dice)
        before = Possessions.now()
        if among:
            outcome.add(await among_processes(model, among, dice))
        if faults > among:
            outcome.add(await in_memory(model, faults - among, dice))
        outcome.leaks += before.left_by(Possessions.now())
    return outcome


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", action="store_true", help="show what the nodes say")
    arguments = parser.parse_args()
    logging.getLogger("flowspec").setLevel(logging.WARNING if arguments.log else logging.CRITICAL)
    began = time.monotonic()
    outcome = run(measure(arguments.faults, arguments.seed))
    for leak in outcome.leaks:
        print(f"leaked: {leak}")
    for error, count in Counter(outcome.tally.errors).most_common(8):
        print(f"{count:4d} x {error}")
    print(f"{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    print(json.dumps(outcome.as_values()))
    sys.exit(0 if outcome.sound else 1)


if __name__ == "__main__":
    run_program(main)
