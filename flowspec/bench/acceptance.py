"""What drafts are worth: `python -m flowspec.bench.acceptance [--positions N] [--drafter KIND[=DIR] ...]`.

Teacher-forced on held-out Python files: per drafter the mean tokens of one target forward of a full tree, at
temperature 0 and 1, with the noise shared and not; and how far what each drafter says is what comes true. Writes JSON.
The figures are counts: how busy the machine is does not matter to them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowspec.bench.named_drafter import NOTATION, load_drafter
from flowspec.demo.corpus import collect, texts
from flowspec.drafting.acceptance import FULL_TREE, WIDTH, Acceptance, Trial, measure
from flowspec.model.block import LayerBlock
from flowspec.model.hub import resolve_model
from flowspec.model.text import encode_prompt, load_tokenizer
from flowspec.model.weights import Checkpoint
from flowspec.program import run_program
from flowspec.topology.topology import DEMO_MODEL
from flowspec.wire.parameters import SamplingParameters

OUTPUT = Path("build/acceptance.json")
DRAFTERS = ("ngram", "causal-lm", "hybrid:causal-lm")
SHORTEST, LONGEST = 64, 1000
"""Tokens of context."""
PER_FILE = 4
"""Positions in one file: few, so that many files count."""
SEED = 20_250


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of the table."""

    name: str
    temperature: float
    shared_noise: bool = True


SETTINGS = (Setting("T 0", 0.0), Setting("T 1", 1.0), Setting("T 1, unshared", 1.0, False))


def heldout_samples(encoded: Sequence[Sequence[int]], positions: int) -> list[tuple[Sequence[int], list[int]]]:
    """(tokens of a file, lengths of contexts), `positions` in all, over files and lengths evenly; always the same."""
    long_enough = [text for text in encoded if len(text) >= 2 * SHORTEST]
    files = min(len(long_enough), -(-positions // PER_FILE))
    chosen = [long_enough[index * len(long_enough) // files] for index in range(files)]
    counts = [positions // files + (index < positions % files) for index in range(files)]
    samples = []
    for number, (text, count) in enumerate(zip(chosen, counts, strict=True)):
        last = min(LONGEST, len(text))
        step = (last - SHORTEST) / count
        # A different part of its step in every file, so that no length is preferred.
        shift = (0.5 + number * 0.618) % 1.0
        lengths = sorted({int(SHORTEST + (index + shift) * step) for index in range(count)})
        samples.append((text[:last], lengths))
    return samples


def show(name: str, results: dict[str, Acceptance]) -> str:
    """One line of the table."""
    figures = "".join(f"{found.mean:9.3f} ±{found.error:5.3f}" for found in results.values())
    one = next(iter(results.values()))
    return f"{name[:20]:20}{figures}{one.steps:7.1f}"


def show_reliability(found: Acceptance) -> str:
    """Two rows: what was said, and what came true, in per cent, bin by bin."""
    said = "".join(f"{100 * each.predicted:5.0f}" for each in found.reliability)
    true = "".join(f"{100 * each.observed:5.0f}" for each in found.reliability)
    return f"  said %   {said}\n  true %   {true}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mean tokens per target forward of a full tree of drafts.")
    parser.add_argument("--model", default=DEMO_MODEL, help="the target's folder")
    parser.add_argument("--positions", type=int, default=200, help="how many trees per drafter and setting")
    parser.add_argument("--drafter", action="append", metavar=NOTATION, help=f"by default {', '.join(DRAFTERS)}")
    parser.add_argument("--tree", type=int, default=FULL_TREE, help="draft tokens of a tree")
    parser.add_argument("--width", type=int, default=WIDTH, help="children asked for per token")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--curves", action="store_true", help="print the reliability curves too")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    checkpoint = Checkpoint(resolve_model(given.model))
    tokenizer = load_tokenizer(checkpoint.path)
    encoded = [encode_prompt(tokenizer, text, False) for text in texts(collect(), "heldout")]
    samples = heldout_samples(encoded, given.positions)
    print(f"{'tokens per forward':20}" + "".join(f"{setting.name[:16]:>16}" for setting in SETTINGS) + "  steps")
    report: dict[str, Any] = {"model": str(checkpoint.path), "tree": given.tree, "width": given.width, "drafters": {}}
    block = LayerBlock.load(checkpoint, 0, checkpoint.layer_count, dtype=given.dtype)
    for named in given.drafter or DRAFTERS:
        drafter, _ = load_drafter(named, given.model, checkpoint, given.dtype)
        results: dict[str, Acceptance] = {}
        began = time.perf_counter()
        for setting in SETTINGS:
            sampling = SamplingParameters(temperature=setting.temperature, seed=SEED)
            trials: list[Trial] = list(
                measure(
                    drafter,
                    block,
                    samples,
                    sampling,
                    shared_noise=setting.shared_noise,
                    size=given.tree,
                    width=given.width,
                )
            )
            results[setting.name] = Acceptance.of(trials)
        print(show(named, results), flush=True)
        if given.curves:
            for name, found in results.items():
                print(f"  {name}\n{show_reliability(found)}")
        report["drafters"][named] = {name: asdict(found) for name, found in results.items()}
        report["drafters"][named]["seconds"] = time.perf_counter() - began
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_program(main)
