"""All measurements of one machine in one run: `python -m flowspec.bench.run [--quick]`.

Writes `build/bench.json` and prints a table. Every figure comes with what the project asks of it; the exit code only
says whether everything could be measured, because figures on a busy machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowspec.bench.bookkeeping import measure_bookkeeping
from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.hop import measure_hop
from flowspec.bench.memory import measure_memory
from flowspec.bench.sampling import measure_sampling
from flowspec.bench.speed import Speed, compare
from flowspec.cluster import LocalCluster
from flowspec.demo import MODEL_DIR
from flowspec.program import run_program
from flowspec.runtime.loop import run

STAGES = 4
EMULATED = {"base_ms": 60.0, "per_token_ms": 0.6}
OUTPUT = Path("build/bench.json")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    prompts: int
    tokens: int
    emulated_prompts: int
    """Where a token takes a quarter of a second."""
    emulated_tokens: int
    repeats: int
    """Of the round trips of a hop."""


FULL = Extent(prompts=24, tokens=192, emulated_prompts=6, emulated_tokens=64, repeats=300)
QUICK = Extent(prompts=2, tokens=64, emulated_prompts=2, emulated_tokens=24, repeats=60)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what was measured, the figure, what is asked of it."""

    name: str
    figure: str
    wanted: str
    met: bool


async def measure_start() -> float:
    """Seconds until five local nodes are READY and a client is served; the fork server's imports are part of it."""
    began = time.perf_counter()
    async with LocalCluster("demo", STAGES) as cluster, cluster.client():
        return time.perf_counter() - began


async def measure_speed(extent: Extent) -> dict[str, Speed]:
    """By name: emulated, at temperature 0 and at temperature 0.8."""
    prompts = heldout_prompts(extent.prompts)
    found = {}
    async with LocalCluster("demo", STAGES) as cluster:
        for temperature in (0.0, 0.8):
            name = f"temperature {temperature:g}"
            found[name] = await compare(cluster, prompts, temperature=temperature, new_tokens=extent.tokens)
    prompts = heldout_prompts(extent.emulated_prompts)
    async with LocalCluster("demo", STAGES, emulate=EMULATED) as cluster:
        found["emulated"] = await compare(cluster, prompts, temperature=0.0, new_tokens=extent.emulated_tokens)
    return found


def measure_all(
    extent: Extent, *, quick: bool, tell: Callable[[str], None] = print
) -> tuple[dict[str, Any], list[Row]]:
    """Everything, as plain values and as rows."""
    tell("start of five nodes ...")
    start = run(measure_start())
    rows = [Row("five local nodes READY", f"{start:.1f} s", "at most 8 s", start <= 8)]
    tell("speed ...")
    speeds = run(measure_speed(extent))
    for name, wanted in (("emulated", 2.5), ("temperature 0", 2.0), ("temperature 0.8", 1.3)):
        speed = speeds[name]
        figure = f"{speed.ratio:.2f}x ({speed.autoregressive:.1f} -> {speed.flowspec:.1f}/s)"
        rows.append(Row(f"flowspec, {name}", figure, f"at least {wanted}x", speed.ratio >= wanted))
    tell("hop, sampling, bookkeeping ...")
    hop, sampling, bookkeeping = measure_hop(extent.repeats), measure_sampling(), measure_bookkeeping()
    rows += [
        Row("one hop, 16 x 4096 bfloat16", f"{hop.hop:.2f} ms (raw {hop.raw:.2f})", "at most 0.45 ms", hop.hop <= 0.45),
        Row("top-p of 128,000, a token", f"{sampling['sharp']:.2f} ms", "at most 2 ms", sampling["sharp"] <= 2),
        Row("bookkeeping of a segment", f"{bookkeeping['sum']:.2f} ms", "under 0.5 ms", bookkeeping["sum"] < 0.5),
    ]
    tell("memory of stages ...")
    memory = measure_memory(MODEL_DIR if quick else None)
    if not quick:
        worst = max(memory, key=lambda found: found.ratio)
        figure = f"{worst.ratio:.2f} x {(worst.weights + worst.cache) / 1e6:.0f} MB"
        rows.append(Row("stage memory, weights + cache", figure, "at most 1.3 x", worst.ratio <= 1.3))
    values = {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "quick": quick,
        "extent": asdict(extent),
        "start_seconds": start,
        "speed": {name: asdict(speed) for name, speed in speeds.items()},
        "hop": asdict(hop),
        "sampling_ms": sampling,
        "bookkeeping_ms": bookkeeping,
        "memory": [asdict(found) | {"ratio": found.ratio} for found in memory],
        "table": [asdict(row) for row in rows],
    }
    return values, rows


def print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(width=80)
    for name in ("measured", "figure", "wanted", ""):
        table.add_column(name)
    for row in rows:
        table.add_row(row.name, row.figure, row.wanted, "yes" if row.met else "NO")
    Console(width=80).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure everything on this machine.")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and tokens, no large checkpoint")
    quick = parser.parse_args().quick
    values, rows = measure_all(QUICK if quick else FULL, quick=quick)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(values, indent=2) + "\n")
    print_table(rows)
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    run_program(main)
