"""Where speculation does not pay, does it cost? `python -m flowspec.bench.fallback [--tokens 160]`.

Emulated stages (60 ms + 0.6 ms a token) over real sockets in one process, and a drafter that is always wrong, that
never guesses, or that begins to be right half-way: tokens per second against `autoregressive`, in turns on the same
nodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch

from flowspec.bench.heldout import heldout_prompts
from flowspec.client import Client
from flowspec.cluster import local_topology
from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.errors import PipelineError
from flowspec.program import run_program
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.runtime.loop import run
from flowspec.schedule.events import GrowTree
from flowspec.topology import Topology
from flowspec.wire.messages import NO_PARENT
from flowspec.wire.parameters import SamplingParameters

STAGES = 4
EMULATED = {"base_ms": 60.0, "per_token_ms": 0.6}
SURE = -0.05
"""Log-probability that the drafter gives to its guesses, right or wrong."""
KINDS = ("wrong", "silent", "improving")
OUTPUT = Path("build/fallback.json")


class KnowingDrafter:
    """Knows the text to come, and tells it from output token `honest_from` on; before that it guesses wrong.

    Implements `Drafter`. `truth` is prompt and output of the session that is to come.
    """

    name = "knowing"
    weight_bytes = 0
    layers = 0
    taps: tuple[int, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.truth: tuple[int, ...] = ()
        self.honest_from = 0
        self.silent = False
        self._places: dict[int, tuple[int, bool]] = {}

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self._places = {NO_PARENT: (-1, True)}

    def close(self, session: str) -> None:
        self._places = {}

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        """It has no taps."""

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        """One sure child for each token: the right one, or one that is not."""
        draft = request.draft
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            position, right = self._places.get(parent, (-2, False))
            place = position + 1
            self._places[serial] = (place, right and 0 <= place < len(self.truth) and self.truth[place] == token)
        if self.silent:
            return ()
        return tuple((serial, self._children(serial)) for serial in request.expand)

    def _children(self, serial: int) -> tuple[tuple[int, float], ...]:
        position, right = self._places.get(serial, (0, False))
        after = position + 1
        if not right or after >= len(self.truth):
            return ((serial % self._vocab_size, SURE),)
        lie = 0 if after >= self.honest_from else 1
        return (((self.truth[after] + lie) % self._vocab_size, SURE),)


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tokens per second after the first token, and their ratio; of `improving`, of the second half alone as well."""

    drafter: str
    autoregressive: float
    flowspec: float
    ratio: float
    second_half_ratio: float
    drafted: int


async def measure_fallback(prompts: Sequence[str], tokens: int) -> list[Fallback]:
    """Every kind of drafter once, each on a prompt of its own and after a run of `autoregressive` on it."""
    topology = local_topology("demo", STAGES, emulate=EMULATED)
    made: list[KnowingDrafter] = []

    def make(_: Topology, target: object) -> KnowingDrafter:
        made.append(KnowingDrafter(int(getattr(target, "vocab_size", 0))))
        return made[-1]

    async with AsyncExitStack() as stack:
        for stage in topology.stages:
            await stack.enter_async_context(StageNode(topology, stage.name))
        coordinator = await stack.enter_async_context(Coordinator(topology, drafter=make))
        await coordinator.ready()
        client = await stack.enter_async_context(Client(topology.client_address))
        (drafter,) = made
        found = []
        for prompt, kind in zip(prompts, KINDS, strict=True):
            plain, truth, prompt_tokens = await _timed(client, prompt, "autoregressive", tokens)
            drafter.truth = truth
            drafter.silent = kind == "silent"
            drafter.honest_from = prompt_tokens + tokens // 2 if kind == "improving" else len(truth) + 1
            fast, same, _ = await _timed(client, prompt, "flowspec", tokens)
            if same != truth:
                raise PipelineError(f"the drafter {kind!r} changed the text")
            found.append(_compared(kind, plain, fast))
        return found


@dataclass(frozen=True, slots=True)
class Timed:
    """When each token came, in seconds, and how many guesses were sent."""

    times: list[float]
    drafted: int

    def rate(self, start: int = 0) -> float:
        """Tokens per second from token `start` on."""
        return (len(self.times) - 1 - start) / (self.times[-1] - self.times[start])


async def _timed(client: Client, prompt: str, policy: str, tokens: int) -> tuple[Timed, tuple[int, ...], int]:
    times: list[float] = []
    stream = client.stream(prompt, policy=policy, max_new_tokens=tokens, ignore_eos=True)
    async for chunk in stream:
        times += [perf_counter()] * len(chunk.token_ids)
    generation = stream.generation
    assert generation.stats is not None
    text = (*generation.prompt_token_ids, *generation.token_ids)
    return Timed(times, generation.stats.drafted), text, len(generation.prompt_token_ids)


def _compared(kind: str, plain: Timed, fast: Timed) -> Fallback:
    half = len(plain.times) // 2
    ratios = (fast.rate() / plain.rate(), fast.rate(half) / plain.rate(half))
    return Fallback(kind, plain.rate(), fast.rate(), *ratios, fast.drafted)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=160, help="new tokens of each run")
    options = parser.parse_args(arguments)
    found = run(measure_fallback(heldout_prompts(len(KINDS)), options.tokens))
    print(f"{'drafter':<12}{'autoregressive':>16}{'flowspec':>12}{'ratio':>9}{'2nd half':>10}{'guesses':>9}")
    for each in found:
        print(
            f"{each.drafter:<12}{each.autoregressive:>12.2f}/s  {each.flowspec:>9.2f}/s  {each.ratio:>6.3f}x"
            f"{each.second_half_ratio:>9.3f}x{each.drafted:>9}"
        )
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n", encoding="utf-8")
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    run_program(main)
