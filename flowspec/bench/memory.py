"""What a stage holds in memory, beside its weights: PSS of a process before and after it loads a block.

    python -m flowspec.bench.memory [DIRECTORY]

Without a directory, a Llama checkpoint of about 1.1 GB is made in a temporary one. The process that is measured has
imported everything before, so the difference is the stage's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flowspec.errors import PipelineError

STAGES = 4
CONTEXT_ROWS = 512
SEGMENT_ROWS = 64


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes. `grown` is what the process takes after loading and computing, less what it took after its imports."""

    model: int
    weights: int
    cache: int
    imports: int
    grown: int

    @property
    def ratio(self) -> float:
        """`grown` over weights plus cache."""
        return self.grown / (self.weights + self.cache)


def measure_memory(model: Path | None = None, *, index: int = 1) -> StageMemory:
    """Measure stage `index` of four, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="flowspec-memory-") as scratch:
        if model is None:
            model = Path(scratch)
            subprocess.run([sys.executable, "-m", "flowspec.bench.memory", "--make", str(model)], check=True)
        command = [sys.executable, "-m", "flowspec.bench.memory", "--stage", str(index), str(model)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"the measured process ended with exit code {done.returncode}\n{done.stderr}")
    return StageMemory(**json.loads(done.stdout.splitlines()[-1]))


def make_checkpoint(folder: Path) -> None:
    """A random Llama checkpoint of about 1.1 GB in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")


def proportional_set_size() -> int:
    """Bytes of this process, pages that it shares divided by their users (Linux)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise PipelineError("this system does not tell the memory of a process")


def _be_stage(model: Path, index: int) -> StageMemory:
    """Load, then fill a cache of `CONTEXT_ROWS` rows by segments, as a session would."""
    import torch

    import flowspec.roles.preload
    from flowspec.model.block import LayerBlock
    from flowspec.model.layout import block_bytes
    from flowspec.model.weights import Checkpoint
    from flowspec.wire.messages import NO_PARENT, DraftTokens

    assert flowspec.roles.preload is not None
    checkpoint = Checkpoint(model)
    layers = checkpoint.split_layers(STAGES)[index]
    assert checkpoint.config is not None
    imports = proportional_set_size()
    block = LayerBlock.load(checkpoint, layers.start, layers.stop)
    cache = block.new_cache(CONTEXT_ROWS)
    for start in range(0, CONTEXT_ROWS, SEGMENT_ROWS):
        serials = tuple(range(start, start + SEGMENT_ROWS))
        parents = tuple(serial - 1 if serial else NO_PARENT for serial in serials)
        batch = cache.begin(DraftTokens(serials, parents, (0,) * SEGMENT_ROWS))
        block.forward(torch.randn(SEGMENT_ROWS, block.hidden_size), cache, batch)
        cache.commit(serials[-1])
    whole = block_bytes(checkpoint, 0, checkpoint.layer_count, "float32")
    return StageMemory(
        model=whole.weights,
        weights=block.weight_bytes,
        cache=CONTEXT_ROWS * block.row_bytes,
        imports=imports,
        grown=proportional_set_size() - imports,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of one stage.")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make_checkpoint(given.make)
        return
    if given.stage is not None:
        found = _be_stage(given.model, given.stage)
        print(json.dumps({name: getattr(found, name) for name in StageMemory.__slots__}))
        return
    found = measure_memory(given.model)
    print(f"{found}, {found.ratio:.2f} x (weights + cache)")


if __name__ == "__main__":
    main()
