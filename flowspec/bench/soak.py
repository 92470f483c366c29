"""Does anything grow, break or go wrong under load? `python -m flowspec.bench.soak [--minutes 30] [--seed 0] [--json]`.

A pipeline of a small random model in float64, draft node and stages as processes, is loaded beyond its limits: as many
requests run as `limits.sessions` allows, as many wait as `limits.waiting` allows, and more are refused. Greedy and
sampled, short and long, by every policy; some clients cancel, some vanish without a word, some read slowly, some want
too much.

Every output has to be what its request gives when nothing else runs, and what came of a request that was broken off its
beginning. After the warm-up, the first fifth of the time, the memory of no process may grow, and after the load all of
them have to be as before it. The last line is one JSON object. Linux only. The exit code is 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Final

from flowspec.bench.awake_clock import AwakeClock
from flowspec.bench.faults import Possessions, children
from flowspec.bench.progress_line import progress_line
from flowspec.bench.random_model import write_random_model
from flowspec.bench.soak_clients import SoakClients
from flowspec.bench.soak_outcome import WARM_UP_SHARE, Course, Outcome
from flowspec.bench.soak_requests import CONTEXT, LONG_OUTPUT, SoakRequest, soak_requests
from flowspec.bench.soak_samples import HELD, TASKS, Sample, metrics_ports, sample, with_metrics
from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster
from flowspec.errors import FlowspecError
from flowspec.forking import fork_server_ready, start_fork_server
from flowspec.program import run_program
from flowspec.runtime.logs import announce_logs
from flowspec.runtime.loop import run
from flowspec.topology import Topology

STAGES: Final = 3
SESSIONS: Final = 8
WAITING: Final = 8
SURPLUS: Final = 4
"""Streams beyond those that run and those that wait."""

BLUR: Final = 0.004
"""Of the draft model; most of its guesses are right."""

SAMPLE_SECONDS: Final = 10.0
LEAST_SAMPLE_SECONDS: Final = 1.0
SAMPLES: Final = 60
"""Of a soak that is so short that one every `SAMPLE_SECONDS` would give fewer."""

QUIET_SECONDS: Final = 30.0
"""Within which all must be as before when the last stream has ended."""

LOOK_SECONDS: Final = 0.2
CLIENTS: Final = "clients"
"""The name of this process among the others."""

NOTHING: Final[dict[str, float]] = {}

M_ARENA_MAX: Final = -8
"""A parameter of the C library's allocator (malloc.h)."""

Say = Callable[[str], None]


def topology_of(model: Path, draft: Path) -> Topology:
    limits = {"sessions": SESSIONS, "waiting": WAITING, "context": CONTEXT, "max_new_tokens": LONG_OUTPUT}
    drafter = {"kind": "hybrid", "of": "causal-lm", "model": str(draft)}
    return with_metrics(Topology.local(str(model), STAGES, dtype="float64", drafter=drafter, limits=limits))


class Processes:
    """Those that are watched: the nodes, and this one."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._found = {**cluster.processes, CLIENTS: os.getpid()}
        self._ports = metrics_ports(cluster.topology)

    async def sample(self) -> dict[str, Sample]:
        # Nodes collect often. Here, beside all that a model was made with, megabytes of garbage would gather first.
        gc.collect()
        return {name: await sample(process, self._ports.get(name)) for name, process in self._found.items()}

    async def quiet(self, before: dict[str, Sample] | None = None) -> tuple[dict[str, Sample], list[str]]:
        """A sample in which no node does anything and no process has more than `before`, or what keeps it from that."""
        limit = time.monotonic() + QUIET_SECONDS
        while True:
            now = await self.sample()
            found = []
            for name, each in now.items():
                found += excess(name, each, before[name] if before else None)
            if not found or time.monotonic() > limit:
                return now, found
            await asyncio.sleep(LOOK_SECONDS)


def excess(name: str, now: Sample, before: Sample | None) -> list[str]:
    """What a process has that it should not have when nothing runs, in words; files, threads, tasks beyond `before`."""
    found = [f"{now.metrics[key]:g} {key} at {name}" for key in HELD if now.metrics.get(key)]
    if before is not None:
        found += [f"{now.files - before.files} open files at {name}"] if now.files > before.files else []
        found += [f"{now.threads - before.threads} threads at {name}"] if now.threads > before.threads else []
        more = now.metrics.get(TASKS, 0.0) - before.metrics.get(TASKS, 0.0)
        found += [f"{more:g} tasks at {name}"] if more > 0 else []
    return found


async def undisturbed(client: Client, requests: list[SoakRequest]) -> list[Generation]:
    """What each request gives alone and without any guesses, one after another."""
    return [await client.generate(**request.asked(), policy="autoregressive") for request in requests]


class Load:
    """The streams and the samples that are taken while they run."""

    def __init__(
        self,
        processes: Processes,
        clients: SoakClients,
        clock: AwakeClock,
        seconds: float,
        say: Say,
        kept: IO[str] | None,
    ) -> None:
        self.samples: dict[str, list[tuple[float, Sample]]] = {}
        """Since the end of the warm-up."""
        self.requests = 0
        """That ended since then."""
        self._processes = processes
        self._clients = clients
        self._clock = clock
        self._seconds = seconds
        self._say = say
        self._kept = kept

    async def run(self) -> None:
        """For so many seconds, and until the last requests have ended."""
        begin = self._clock.now
        warm, end = begin + WARM_UP_SHARE * self._seconds, begin + self._seconds
        interval = min(SAMPLE_SECONDS, max(LEAST_SAMPLE_SECONDS, self._seconds / SAMPLES))
        before = 0
        running = asyncio.create_task(self._clients.run(), name="soak streams")
        try:
            due = begin
            while self._clock.now < end and not running.done():
                now = self._clock.now
                if now >= due:
                    due = now + interval
                    sampled = await self._processes.sample()
                    self._keep(now - begin, sampled)
                    if now >= warm:
                        for name, each in sampled.items():
                            self.samples.setdefault(name, []).append((now - begin, replace(each, metrics=NOTHING)))
                    else:
                        before = self._clients.tally.requests
                    self._say(self._line(now - begin, sampled))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self.requests = self._clients.tally.requests - before
            self._clients.stop()
            await running

    def _keep(self, seconds: float, sampled: dict[str, Sample]) -> None:
        if self._kept is not None:
            processes = {name: asdict(each) for name, each in sampled.items()}
            values = {"seconds": seconds, "requests": self._clients.tally.requests, **processes}
            print(json.dumps(values), file=self._kept, flush=True)

    def _line(self, seconds: float, sampled: dict[str, Sample]) -> str:
        tally = self._clients.tally
        memory = " ".join(f"{name} {each.memory / 1e6:.1f}" for name, each in sampled.items())
        return (
            f"{seconds / 60:5.1f} of {self._seconds / 60:g} min: {tally.requests} requests, {tally.exact} exact, "
            f"{tally.cancelled} cancelled, {tally.disconnected} gone, {tally.refused} refused, "
            f"{tally.wrong + tally.errors + tally.hung} bad; MB: {memory}"
        )


async def soak(
    minutes: float, seed: int, say: Say, requests: list[SoakRequest] | None = None, kept: IO[str] | None = None
) -> Outcome:
    """The whole soak; every sample goes to `kept`, one JSON object a line.

    Raises what keeps the pipeline from starting, and `OSError` when the process of a node is gone.
    """
    dice = random.Random(seed)
    asked = soak_requests(seed) if requests is None else requests
    clock = AwakeClock()
    start_fork_server()
    await fork_server_ready()
    already = children()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowspec-soak-")))
        model = await asyncio.to_thread(write_random_model, folder / "model")
        draft = await asyncio.to_thread(write_random_model, folder / "draft", blur=BLUR)
        await stack.enter_async_context(clock.going())
        cluster = await stack.enter_async_context(LocalCluster(topology=topology_of(model, draft), restarts=0))
        async with Client(cluster.address) as client:
            truth = await undisturbed(client, asked)
            # The first trace needs room that is never given back, and comes late where few requests are traced.
            await client.generate(**max(asked, key=lambda each: each.max_new_tokens).asked(), trace=True)
        processes = Processes(cluster)
        before, unquiet = await processes.quiet()
        mine = Possessions.now()
        streams = SESSIONS + WAITING + SURPLUS
        clients = SoakClients(
            cluster.address, asked, truth, dice, streams=streams, most_tokens=LONG_OUTPUT, clock=clock
        )
        load = Load(processes, clients, clock, minutes * 60.0, say, kept)
        await load.run()
        after, left = await processes.quiet(before)
        leaks = [*unquiet, *left, *mine.left_by(Possessions.now())]
    leaks += [f"process {process}" for process in children() - already]
    for words in clients.tally.words:
        print(words, file=sys.stderr)
    return Outcome(
        minutes=minutes,
        ended=clients.tally.as_values(),
        courses={name: Course.of(series, load.requests) for name, series in load.samples.items()},
        files={name: (before[name].files, after[name].files) for name in before},
        threads={name: (before[name].threads, after[name].threads) for name in before},
        by_policy=clients.tally.by_policy,
        by_end=clients.tally.by_end,
        held_up=clock.held_up,
        leaks=leaks,
    )


def share_one_arena() -> None:
    """Let all threads of this process allocate from one place, where the C library is glibc.

    Every connection of a client has threads of its own. Each of up to eight arenas per core would grow to the most that
    such threads ever held in it, which takes longer than a soak and looks like a leak.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--samples", type=argparse.FileType("w"), help="write every sample to this file, a line each")
    arguments = parser.parse_args()
    announce_logs("auto", "error")
    share_one_arena()
    began = time.monotonic()
    try:
        with progress_line() as say:
            outcome = run(soak(arguments.minutes, arguments.seed, say, kept=arguments.samples))
    except (OSError, FlowspecError) as error:
        sys.exit(f"the soak broke off: {type(error).__name__}: {error}")
    for leak in outcome.leaks:
        print(f"leaked: {leak}", file=sys.stderr)
    if not arguments.json:
        print(*outcome.table(), f"{time.monotonic() - began:.0f} s, seed {arguments.seed}", sep="\n")
    print(json.dumps(outcome.as_values()))
    sys.exit(0 if outcome.sound else 1)


if __name__ == "__main__":
    run_program(main)
