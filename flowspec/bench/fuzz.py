"""A million inputs that nobody should send: frames and headers, topology files, and what clients may ask.

Each is accepted, or refused with an error of its own kind; anything else is a crash, and is printed with the input. An
input that takes longer than a second of computing is a hang. Memory is compared between an early and the last moment.
The last line is one JSON object; the same seed gives the same inputs.

    python -m flowspec.bench.fuzz [--inputs N] [--seed S]        (make fuzz)
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from flowspec.bench.fuzzed_desk import FuzzedDesk
from flowspec.bench.mutations import Mutator
from flowspec.errors import InvariantViolation, TopologyError, WireError
from flowspec.program import run_program
from flowspec.topology import Topology
from flowspec.topology.document import parse_document
from flowspec.wire.frames import FrameLimits, decode

INPUTS = 1_000_000
SHARES = {"topologies": 0.02, "clients": 0.08}
"""Of all inputs; the rest are frames."""

HANG_SECONDS = 1.0
GROWTH_BYTES = 32 * 2**20
"""By how much the process may be larger at the end than after the first fifth."""

CLIENT_LIMITS = FrameLimits(frames=1, tensor_bytes=0)
TOPOLOGIES = Path(__file__).parents[2] / "topology"
MINIMAL = "nodes:\n  - {name: draft, role: draft, host: h, port: 1}\n  - {name: s, role: stage, host: h, port: 9}\n"
MOST_SHOWN = 5


@dataclass(slots=True)
class Campaign:
    """What became of the inputs."""

    seed: int
    inputs: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By class of error."""
    crashes: int = 0
    hangs: int = 0
    slowest_ms: float = 0.0
    growth_bytes: int = 0
    by_target: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        told = self.accepted + self.rejected.total() + self.crashes == self.inputs
        return told and not self.crashes and not self.hangs and self.growth_bytes <= GROWTH_BYTES

    def as_values(self) -> dict[str, object]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()} | {
            "met": self.met
        }

    def try_one(self, target: str, allowed: type[Exception], attempt: Callable[[], object], shown: object) -> None:
        """Count what becomes of one input. An error that is not `allowed` is a crash."""
        # Of this thread alone: nothing here waits, and how busy the machine is says nothing.
        began = time.thread_time()
        try:
            attempt()
            self.accepted += 1
        except Exception as error:
            if isinstance(error, allowed) and not isinstance(error, InvariantViolation):
                self.rejected[type(error).__name__] += 1
            else:
                self._crashed(target, error, shown)
        seconds = time.thread_time() - began
        self.slowest_ms = max(self.slowest_ms, 1000 * seconds)
        self.hangs += seconds > HANG_SECONDS
        self.inputs += 1
        self.by_target[target] += 1

    def _crashed(self, target: str, error: Exception, shown: object) -> None:
        self.crashes += 1
        if self.crashes <= MOST_SHOWN:
            print(f"CRASH in {target}: {type(error).__name__}: {error}\n  {shown!r:.2000}", flush=True)


def fuzz_frames(campaign: Campaign, mutator: Mutator, count: int) -> Iterator[None]:
    """As a pipe decodes them, and as the coordinator does what comes from clients."""
    for number in range(count):
        frames = mutator.frames()
        limits = CLIENT_LIMITS if number % 4 == 0 else FrameLimits()
        campaign.try_one("frames", WireError, lambda f=frames, m=limits: decode(f, m), frames)  # type: ignore[misc]
        yield


def fuzz_topologies(campaign: Campaign, mutator: Mutator, count: int) -> Iterator[None]:
    files = [MINIMAL, *(path.read_text() for path in sorted(TOPOLOGIES.glob("*.yaml")))]
    for _ in range(count):
        text = mutator.topology(files)
        campaign.try_one("topologies", TopologyError, lambda t=text: load(t), text)  # type: ignore[misc]
        yield


def load(text: str) -> Topology:
    return Topology.from_document(parse_document(text, file="fuzzed.yaml"), directory=Path("/"))


def memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


async def fuzz(inputs: int = INPUTS, seed: int = 0, tell: Callable[[str], None] = lambda line: None) -> Campaign:
    """Targets take turns, so that none has the early moment for itself."""
    campaign, mutator = Campaign(seed), Mutator(seed)
    began = time.perf_counter()
    logging.getLogger("flowspec").setLevel(logging.CRITICAL)
    counts = {name: round(inputs * share) for name, share in SHARES.items()}
    desk = FuzzedDesk(mutator)
    work = [
        (fuzz_frames(campaign, mutator, inputs - sum(counts.values())), inputs - sum(counts.values())),
        (fuzz_topologies(campaign, mutator, counts["topologies"]), counts["topologies"]),
        (desk.fuzz(campaign.try_one, counts["clients"]), counts["clients"]),
    ]
    early = 0
    for part in range(100):
        for steps, count in work:
            for _ in range(count * part // 100, count * (part + 1) // 100):
                next(steps)
        # What the desk has put off is done now.
        await asyncio.sleep(0)
        desk.settle()
        if part == 19:
            gc.collect()
            early = memory_bytes()
        if part % 10 == 9:
            tell(f"{campaign.inputs} inputs, {campaign.accepted} accepted, {campaign.crashes} crashes")
    gc.collect()
    campaign.growth_bytes = max(0, memory_bytes() - early)
    campaign.seconds = round(time.perf_counter() - began, 1)
    return campaign


def main() -> None:
    parser = argparse.ArgumentParser(description="Send everything that accepts input what nobody should send.")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    campaign = asyncio.run(fuzz(given.inputs, given.seed, lambda line: print(line, flush=True)))
    print(json.dumps(campaign.as_values()))
    raise SystemExit(0 if campaign.met else 1)


if __name__ == "__main__":
    run_program(main)
