"""Do many requests leave the nodes as they were? `python -m flowspec.bench.steadiness [--requests 200]`.

A local cluster on the demo model serves short requests one after another: both policies, greedy and sampled, every
fifth broken off by its client. Memory, open files (sockets are among them) and threads of every process are compared
with what they were after a warm-up; sessions and cache rows must be gone. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.memory import resident
from flowspec.bench.speed import POLICIES
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.program import run_program
from flowspec.runtime.loop import run

STAGES = 4
WARM_UP = 20
NEW_TOKENS = 16
CANCEL_EVERY = 5
STEADY_BYTES = 2_000_000
STEADY_SHARE = 0.01
DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process has at a moment."""

    memory: int
    """Resident bytes."""
    files: int
    threads: int

    @classmethod
    def of(cls, process: int) -> Holdings:
        folder = Path("/proc", str(process))
        return cls(
            resident("VmRSS", process), len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One process before and after the requests."""

    process: str
    before: Holdings
    after: Holdings

    @property
    def grown(self) -> int:
        return self.after.memory - self.before.memory

    @property
    def steady(self) -> bool:
        limit = max(STEADY_BYTES, STEADY_SHARE * self.before.memory)
        return (
            self.grown < limit and self.after.files <= self.before.files and self.after.threads <= self.before.threads
        )

    def __str__(self) -> str:
        before, after = self.before, self.after
        return (
            f"{self.process:9}{before.memory / 1e6:10.1f}{self.grown / 1e6:+9.2f}{before.files:8} -> {after.files}"
            f"{before.threads:9} -> {after.threads}   {'yes' if self.steady else 'NO'}"
        )


HEADING = f"{'process':9}{'memory MB':>10}{'growth':>9}{'open files':>14}{'threads':>14}   steady"


async def measure_steadiness(requests: int = 200) -> list[Change]:
    """Raises `TimeoutError` when a session or a cache row is left."""
    async with LocalCluster("demo", STAGES) as cluster, cluster.client() as client:
        processes = {**cluster.processes, "client": os.getpid()}
        prompts = heldout_prompts(WARM_UP)
        await _serve(client, prompts, WARM_UP)
        before = {name: Holdings.of(process) for name, process in processes.items()}
        await _serve(client, prompts, requests)
        return [Change(name, before[name], Holdings.of(process)) for name, process in processes.items()]


async def _serve(client: Client, prompts: list[str], requests: int) -> None:
    """One request after another; returns when no session and no cache row is left."""
    for number in range(requests):
        stream = client.stream(
            prompts[number % len(prompts)],
            policy=POLICIES[number % 2],
            temperature=0.8 if number // 2 % 2 else 0.0,
            top_p=0.95,
            seed=number,
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
        )
        async with aclosing(aiter(stream)) as chunks:
            async for _ in chunks:
                if number % CANCEL_EVERY == 0:
                    break
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (status := await client.status()).sessions or any(node.rows for node in status.nodes):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the processes before and after many requests.")
    parser.add_argument("--requests", type=int, default=200)
    requests = parser.parse_args().requests
    changes = run(measure_steadiness(requests))
    print(f"{requests} requests after {WARM_UP}; no session and no cache row is left", HEADING, *changes, sep="\n")
    if not all(change.steady for change in changes):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
