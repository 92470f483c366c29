"""What each drafter makes of the demo model's speed: `python -m flowspec.bench.drafters [--quick] [KIND ...]`.

A cluster of a draft node and four stages per drafter, each measured against `autoregressive` on its own nodes in turns;
KIND is one of a topology's drafter kinds, or `hybrid:KIND` for n-grams joined with that one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.pipes import Pipe
from flowspec.bench.speed import Speed, compare
from flowspec.cluster import LocalCluster
from flowspec.program import run_program
from flowspec.runtime.loop import run

STAGES = 4
KINDS = ("ngram", "causal-lm", "eagle", "eagle3", "hybrid:causal-lm", "hybrid:eagle3")
TEMPERATURES = (0.0, 0.8)
OUTPUT = Path("build/drafters.json")


async def measure_drafters(kinds: Sequence[str], prompts: list[str], new_tokens: int) -> dict[str, list[Speed]]:
    """By kind of drafter: one `Speed` per temperature."""
    found: dict[str, list[Speed]] = {}
    for kind in kinds:
        async with LocalCluster(topology=Pipe(stages=STAGES).topology(kind)) as cluster:
            found[kind] = [
                await compare(cluster, prompts, temperature=temperature, new_tokens=new_tokens)
                for temperature in TEMPERATURES
            ]
        print(line(kind, found[kind]), flush=True)
    return found


def line(kind: str, speeds: Sequence[Speed]) -> str:
    """One drafter, in 80 columns."""
    figures = (
        f"{each.autoregressive:>6.0f} ->{each.flowspec:>5.0f}/s {each.ratio:.2f}x {each.accepted_per_verdict:>4.1f}"
        for each in speeds
    )
    return f"{kind:<18}" + "  ".join(figures)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=KINDS)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and tokens")
    options = parser.parse_args(arguments)
    prompts = heldout_prompts(3 if options.quick else 6)
    print(f"{'drafter':<18}{'temperature 0, ratio, per verdict':<35}temperature 0.8")
    found = run(measure_drafters(options.kinds, prompts, 96 if options.quick else 192))
    OUTPUT.parent.mkdir(exist_ok=True)
    values = {kind: [asdict(speed) for speed in speeds] for kind, speeds in found.items()}
    OUTPUT.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    run_program(main)
