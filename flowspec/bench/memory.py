"""What a stage holds in memory, beside its weights and cache: `python -m flowspec.bench.memory [DIRECTORY]`.

A process that has imported everything loads the layers of one stage of four and fills a cache, as a session would; its
PSS after that, less its PSS before, is the stage's own. First, middle and tail stage, float32 files in float32 and
bfloat16 files in bfloat16 and float32. Without a directory, Llama checkpoints of about 1.1 GB are made in a temporary
one. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from flowspec.errors import PipelineError
from flowspec.program import run_program

STAGES = 4
CASES = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))
"""Stored as, computed in."""
MEASURED_STAGES = (0, 1, STAGES - 1)
CONTEXT_ROWS = 512
SEGMENT_ROWS = 64


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage in a process of its own."""

    stage: str
    stored: str
    dtype: str
    weights: int
    cache: int
    grown: int
    """PSS after loading and computing, less PSS after the imports."""
    peak: int
    """The same for the most that was resident at once; pages of the files, which the system may drop, included."""

    @property
    def ratio(self) -> float:
        """`grown` over weights plus cache."""
        return self.grown / (self.weights + self.cache)

    def __str__(self) -> str:
        return (
            f"{self.stage:8} {self.stored:>9} in {self.dtype:9}{self.weights / 1e6:8.0f}{self.cache / 1e6:7.1f}"
            f"{self.grown / 1e6:8.0f}{self.peak / 1e6:8.0f}{self.ratio:8.2f}"
        )


HEADING = f"{'stage':8} {'stored':>9}    {'dtype':9}{'weights':>8}{'cache':>7}{'grown':>8}{'peak':>8}{'ratio':>8}"


def measure_memory(model: Path | None = None) -> list[StageMemory]:
    """All cases; a `model` that is given is measured in float32 only."""
    if model is not None:
        return [_measure(model, index, "float32") for index in MEASURED_STAGES]
    found = []
    with tempfile.TemporaryDirectory(prefix="flowspec-memory-") as scratch:
        for stored in sorted({stored for stored, _ in CASES}):
            folder = Path(scratch, stored)
            _call("--make", stored, str(folder))
            for dtype in [dtype for case, dtype in CASES if case == stored]:
                found += [_measure(folder, index, dtype) for index in MEASURED_STAGES]
    return found


def _measure(model: Path, index: int, dtype: str) -> StageMemory:
    return StageMemory(**json.loads(_call("--stage", str(index), "--dtype", dtype, str(model)).splitlines()[-1]))


def _call(*arguments: str) -> str:
    """This module in a process of its own; what it printed."""
    command = [sys.executable, "-m", "flowspec.bench.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"the measured process ended with exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def make_checkpoint(folder: Path, dtype: str) -> None:
    """A random Llama checkpoint of about 1.1 GB."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=20 if dtype == "float32" else 40,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="200MB")


def resident(field: str, process: int | str = "self") -> int:
    """Bytes of a process: "Pss" (pages that it shares divided by their users), "VmHWM" (the most at once), ..."""
    for file in ("smaps_rollup", "status"):
        for line in Path("/proc", str(process), file).read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    raise PipelineError(f"this system does not tell {field} of a process")


def _be_stage(model: Path, index: int, dtype: str) -> StageMemory:
    """Load, then fill a cache of `CONTEXT_ROWS` rows by segments, as a session would."""
    import torch

    import flowspec.roles.preload
    from flowspec.model.block import LayerBlock
    from flowspec.model.weights import Checkpoint
    from flowspec.wire.messages import NO_PARENT, DraftTokens

    assert flowspec.roles.preload is not None
    torch.set_num_threads(1)
    checkpoint = Checkpoint(model)
    layers = checkpoint.split_layers(STAGES)[index]
    assert checkpoint.config is not None
    before, resident_before = resident("Pss"), resident("VmRSS")
    block = LayerBlock.load(checkpoint, layers.start, layers.stop, dtype=dtype)
    cache = block.new_cache(CONTEXT_ROWS)
    for start in range(0, CONTEXT_ROWS, SEGMENT_ROWS):
        serials = tuple(range(start, start + SEGMENT_ROWS))
        parents = tuple(serial - 1 if serial else NO_PARENT for serial in serials)
        batch = cache.begin(DraftTokens(serials, parents, (0,) * SEGMENT_ROWS))
        inputs = torch.tensor(serials) if block.is_first else torch.randn(SEGMENT_ROWS, block.hidden_size)
        hidden = block.forward(inputs, cache, batch)
        if block.is_tail and hidden is not None:
            block.logits(hidden[-1:])
        cache.commit(serials[-1])
    return StageMemory(
        stage="first" if block.is_first else "tail" if block.is_tail else "middle",
        stored=str(checkpoint.stored(checkpoint.names(layers.start, layers.stop)[0]).dtype),
        dtype=dtype,
        weights=block.weight_bytes,
        cache=CONTEXT_ROWS * block.row_bytes,
        grown=resident("Pss") - before,
        peak=resident("VmHWM") - resident_before,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of single stages.")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make_checkpoint(given.model, given.make)
    elif given.stage is not None:
        print(json.dumps(asdict(_be_stage(given.model, given.stage, given.dtype))))
    else:
        print("megabytes; ratio = grown / (weights + cache)", HEADING, *measure_memory(given.model), sep="\n")


if __name__ == "__main__":
    run_program(main)
