"""What tracing costs: tokens per second with and without, in turns: `python -m flowspec.bench.tracing [--pairs N]`."""

from __future__ import annotations

import argparse
import json
import math
from statistics import mean, median, stdev

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.speed import SEED, WARM_UP_TOKENS
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.errors import PipelineError
from flowspec.program import run_program
from flowspec.runtime.loop import run

PROMPTS = 4
NEW_TOKENS = 96


async def rate(client: Client, prompt: str, trace: bool) -> float:
    """Tokens per second of one generation; one that is traced must have a trace."""
    generation = await client.generate(
        prompt, temperature=0.8, seed=SEED, max_new_tokens=NEW_TOKENS, ignore_eos=True, trace=trace
    )
    if generation.stats is None or trace != (generation.trace is not None):
        raise PipelineError("a generation came without its figures or its trace")
    return generation.stats.tokens_per_second


async def measure(pairs: int, stages: int, base_ms: float) -> dict[str, float]:
    """`ratio`: geometric mean over pairs of runs of one prompt, traced over plain; `error`: its standard error."""
    prompts = heldout_prompts(PROMPTS)
    emulate = {"base_ms": base_ms} if base_ms else None
    logarithms, plain, traced = [], [], []
    async with LocalCluster("demo", stages, emulate=emulate) as cluster, cluster.client() as client:
        for trace in (False, True):
            await client.generate(prompts[0], max_new_tokens=WARM_UP_TOKENS, trace=trace)
        for number in range(pairs):
            order = (False, True) if number % 2 == 0 else (True, False)
            found = {trace: await rate(client, prompts[number // 2 % PROMPTS], trace) for trace in order}
            plain.append(found[False])
            traced.append(found[True])
            logarithms.append(math.log(found[True] / found[False]))
    return {
        "pairs": pairs,
        "plain_tokens_per_second": median(plain),
        "traced_tokens_per_second": median(traced),
        "ratio": math.exp(mean(logarithms)),
        "median_ratio": math.exp(median(logarithms)),
        "error": stdev(logarithms) / math.sqrt(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--base-ms", type=float, default=0.0, help="emulate stages that take this long for a segment")
    options = parser.parse_args()
    print(json.dumps(run(measure(options.pairs, options.stages, options.base_ms))))


if __name__ == "__main__":
    run_program(main)
