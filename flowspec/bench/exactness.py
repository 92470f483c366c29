"""How often do the policies write different streams? `python -m flowspec.bench.exactness [--dtype D] [--prompts N]`.

A segment's tokens are computed together, so sums are rounded otherwise than one token at a time. In float32 that can
only matter where two tokens are as good as equal, and each output token is checked for that against the whole model;
in half precision it matters more often, and nothing is promised.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from dataclasses import dataclass

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.speed import POLICIES, SEED, generate
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.model.check import WholeModel, check_generation
from flowspec.program import run_program
from flowspec.runtime.loop import run
from flowspec.wire.parameters import SamplingParameters

STAGES = 2
"""Fewer processes take less of the machine; a stream depends on the number of stages only by rounding, too."""
DTYPES = ("float32", "bfloat16", "float16")
PROMISED = "float32"
"""Of these the dtype in which every token is the whole model's own, or a tie with it; else the exit code is 1."""
TEMPERATURES = (0.0, 0.8)
PROMPT_CHARACTERS = 240
NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Exactness:
    """Streams of both policies, for the same prompts and seed, beside each other and beside the model alone."""

    dtype: str
    temperature: float
    streams: int
    differing: int
    """Prompts for which the two streams are not equal."""
    tokens: int
    """Output tokens of both policies."""
    ties: int
    """Tokens that are not the whole model's own, but shown to be ties with it."""
    differences: int
    """Tokens that are not the whole model's own, and no shown ties."""

    def __str__(self) -> str:
        return (
            f"{self.dtype:9}{self.temperature:5g}{self.streams:9}{self.differing:11}"
            f"{self.tokens:9}{self.ties:7}{self.differences:13}"
        )


HEADING = f"{'dtype':9}{'T':>5}{'streams':>9}{'differing':>11}{'tokens':>9}{'ties':>7}{'differences':>13}"


async def measure_exactness(dtype: str, prompts: list[str]) -> AsyncIterator[Exactness]:
    """One result per temperature."""
    async with LocalCluster("demo", STAGES, dtype=dtype) as cluster, cluster.client() as client:
        whole = WholeModel(cluster.topology.tail.model, dtype)
        for temperature in TEMPERATURES:
            yield await _compare(client, whole, dtype, prompts, SamplingParameters(temperature=temperature, seed=SEED))


async def _compare(
    client: Client, whole: WholeModel, dtype: str, prompts: list[str], sampling: SamplingParameters
) -> Exactness:
    differing = tokens = ties = differences = 0
    for prompt in prompts:
        streams = []
        for policy in POLICIES:
            found = await generate(client, prompt, policy, sampling, NEW_TOKENS)
            report = check_generation(whole, found.prompt_token_ids, found.token_ids, sampling)
            streams.append(found.token_ids)
            tokens += report.tokens
            ties += len(report.ties)
            differences += len(report.differences)
        differing += streams[0] != streams[1]
    return Exactness(dtype, sampling.temperature, len(prompts), differing, tokens, ties, differences)


async def _print_all(dtypes: tuple[str, ...], prompts: list[str]) -> bool:
    """Whether what is promised was kept."""
    kept = True
    print(HEADING)
    for dtype in dtypes:
        async for found in measure_exactness(dtype, prompts):
            print(found, flush=True)
            kept = kept and (dtype != PROMISED or found.differences == 0)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the streams of both policies, and each with the model alone.")
    parser.add_argument("--dtype", choices=DTYPES, help="one only; all by default")
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args()
    prompts = [prompt[:PROMPT_CHARACTERS].rstrip() for prompt in heldout_prompts(given.prompts)]
    if not run(_print_all((given.dtype,) if given.dtype else DTYPES, prompts)):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
