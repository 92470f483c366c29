"""How long drawing one token takes: `python -m flowspec.bench.sampling`. One thread, random logits.

"sharp" logits resemble a language model's (top-p 0.95 keeps tens of tokens), of "wide" ones it keeps thousands, of
"flat" ones, the worst case, most of the vocabulary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from flowspec.model.sampling import Sampler
from flowspec.program import run_program
from flowspec.wire.parameters import SamplingParameters

CASES = (
    ("greedy", SamplingParameters()),
    ("T 0.8", SamplingParameters(temperature=0.8)),
    ("T 0.8, top-p 0.95", SamplingParameters(temperature=0.8, top_p=0.95)),
    ("T 0.8, top-k 50, top-p 0.95", SamplingParameters(temperature=0.8, top_k=50, top_p=0.95)),
    ("T 0.8, min-p 0.05", SamplingParameters(temperature=0.8, min_p=0.05)),
)
SPREAD = {"sharp": 6.0, "wide": 3.0, "flat": 0.5}
"""Standard deviation of the logits."""


def best_of(rounds: int, call: Callable[[int], object]) -> float:
    """The least time of `call(round)` in milliseconds: what is left out is other processes."""
    times = []
    for index in range(rounds):
        began = time.perf_counter()
        call(index)
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def measure_sampling(vocabulary: int = 128_000) -> dict[str, float]:
    """Milliseconds for one token with top-p 0.95 at temperature 0.8, by how flat the logits are."""
    sampler = Sampler(SamplingParameters(temperature=0.8, top_p=0.95), vocabulary)
    noise = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    return {name: best_of(30, partial(sampler.sample, noise * spread)) for name, spread in SPREAD.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print(f"{'ms':32s} {'V':>7s} " + " ".join(f"{name:>8s}" for name in SPREAD))
    for vocabulary in (4096, 32_000, 128_000):
        noise = torch.randn(vocabulary, generator=generator)
        for name, parameters in CASES:
            sampler = Sampler(parameters, vocabulary)
            figures = [best_of(rounds, partial(sampler.sample, noise * spread)) for spread in SPREAD.values()]
            print(f"sample, {name:24s} {vocabulary:7d} " + " ".join(f"{value:8.3f}" for value in figures))
    for temperature in (0.0, 0.8):
        for vocabulary in (4096, 128_000):
            sampler = Sampler(SamplingParameters(temperature=temperature), vocabulary)
            rows = torch.randn(8, vocabulary, generator=generator) * SPREAD["sharp"]
            figure = best_of(rounds, lambda index, s=sampler, x=rows: s.rank(x, range(10, 18), 4))  # type: ignore[misc]
            print(f"rank 8 rows, T {temperature:<17g} {vocabulary:7d} {figure:8.3f}")


if __name__ == "__main__":
    run_program(main)
