"""What encryption costs: the demo's tokens per second with keys and without, in one run, prompt by prompt in turns.

Both pipelines are there all the time; only one of them has work. The last line is one JSON object.

    python -m flowspec.bench.encryption [--quick]
"""

from __future__ import annotations

import argparse
import json
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from statistics import median

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.speed import generate
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.program import run_program
from flowspec.runtime.loop import run
from flowspec.wire.parameters import SamplingParameters

STAGES = 4
WARM_UP_TOKENS = 8
ALLOWED = 0.10
"""Share of the tokens per second that encryption may cost."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """Medians over the prompts, tokens per second; `cost` is the median over the pairs of 1 - secure / plain."""

    prompts: int
    new_tokens: int
    plain: float
    secure: float
    cost: float
    same_tokens: int
    """Prompts for which both wrote the same; they differ by nothing but their connections."""

    @property
    def met(self) -> bool:
        return self.cost <= ALLOWED and self.same_tokens == self.prompts


async def measure_encryption(prompts: int = 10, new_tokens: int = 96) -> Encryption:
    """Which of the two begins changes from prompt to prompt."""
    texts = heldout_prompts(prompts)
    sampling = SamplingParameters(temperature=0.0)
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context((await stack.enter_async_context(cluster)).client())
            for cluster in (LocalCluster("demo", STAGES), LocalCluster("demo", STAGES, secure=True))
        ]
        for client in (one, other):
            await client.generate(texts[0], max_new_tokens=WARM_UP_TOKENS)
        rates: dict[Client, list[float]] = {one: [], other: []}
        same = 0
        for number, text in enumerate(texts):
            written = []
            for client in (one, other) if number % 2 == 0 else (other, one):
                found = await generate(client, text, "flowspec", sampling, new_tokens)
                assert found.stats is not None
                rates[client].append(found.stats.tokens_per_second)
                written.append(found.token_ids)
            same += written[0] == written[1]
    costs = [1 - with_keys / without for without, with_keys in zip(rates[one], rates[other], strict=True)]
    return Encryption(prompts, new_tokens, median(rates[one]), median(rates[other]), median(costs), same)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what encryption costs on this machine.")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and tokens")
    quick = parser.parse_args().quick
    found = run(measure_encryption(4, 48) if quick else measure_encryption())
    print(f"{found.prompts} prompts of {found.new_tokens} tokens, in turns, {STAGES} stages, the same machine:")
    print(f"  without keys {found.plain:6.1f} tokens/s   with keys {found.secure:6.1f}   cost {found.cost:.1%}")
    print(json.dumps({**asdict(found), "met": found.met}))
    if found.same_tokens < found.prompts:
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
