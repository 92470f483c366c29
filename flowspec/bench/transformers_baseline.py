"""flowspec against `generate` of transformers in one process, on the same cores, prompts and number of tokens.

    python -m flowspec.bench.transformers_baseline [--model demo] [--quick]

The single process has the whole model, all cores that flowspec's nodes have together (in one torch thread, or in as
many as there are cores, whichever is tried out to be faster), and what transformers offers for speed: plain decoding,
assisted generation (the demo's own draft model as the assistant) and prompt lookup, with a sweep of the number of
guessed tokens, of which the best counts. Contenders take turns prompt by prompt, so that a machine that becomes slower
does so for all of them. Temperature 0, EOS ignored. Tokens per second are those of `flowspec.bench.speed`: decoding
only, counted from the first token that is final.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flowspec.bench.heldout import heldout_prompts
from flowspec.bench.speed import WARM_UP_TOKENS, generate
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.errors import PipelineError
from flowspec.model.check import WholeModel, check_generation
from flowspec.model.hub import resolve_model
from flowspec.program import run_program
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.loop import run
from flowspec.wire.parameters import SamplingParameters

STAGES = 4
TRIALS, TRIAL_TOKENS = 3, 32
OUTPUT = Path("build/transformers_baseline.json")
GREEDY = SamplingParameters(temperature=0.0, seed=0)
FLOWSPEC, PIPELINE, PLAIN, ASSISTED, LOOKUP = (
    "flowspec",
    "autoregressive",
    "generate",
    "assisted generate",
    "prompt lookup",
)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: prompts, tokens of each, and the guessed tokens that the two sweeps try."""

    prompts: int
    new_tokens: int
    assistant: tuple[int, ...]
    lookup: tuple[int, ...]


FULL = Extent(prompts=6, new_tokens=192, assistant=(1, 2, 3, 4, 6, 8), lookup=(3, 4, 5, 6, 8, 10))
QUICK = Extent(prompts=2, new_tokens=64, assistant=(2, 4), lookup=(3, 10))


@dataclass(frozen=True, slots=True)
class Completion:
    token_ids: tuple[int, ...]
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contender over all prompts."""

    group: str
    setting: str
    tokens_per_second: float
    """Median over the prompts."""
    ratio: float
    """How much faster `flowspec` was: median of the prompts' own ratios, which drift of the machine leaves alone."""
    same_tokens: int
    """Prompts for which the tokens are those of plain `generate`; the others differ by shown ties only."""


# ---- transformers ----------------------------------------------------------------------------------------------------


class _Clock:
    """What `generate` takes as a streamer: notes when tokens became final. The prompt is put first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


class SingleProcess:
    """The whole model, and the draft model where there is one, in this process; runs on the thread that calls it."""

    def __init__(self, model: str, draft: str | None) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        # What it says of generation options that are left out is said for every call.
        logging.set_verbosity_error()
        logging.disable_progress_bar()

        def load(name: str) -> Any:
            loaded = AutoModelForCausalLM.from_pretrained(
                str(resolve_model(name)),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
            ).eval()
            # No EOS, and nothing of what a checkpoint recommends: that is for flowspec off, too.
            loaded.generation_config = GenerationConfig(pad_token_id=0)
            return loaded

        self._target = load(model)
        self._assistant = load(draft) if draft else None

    @property
    def has_assistant(self) -> bool:
        return self._assistant is not None

    def use_faster(self, counts: Sequence[int], prompt: Sequence[int], new_tokens: int) -> int:
        """Try each number of torch threads, in turns, and keep the one that plain decoding is fastest with."""
        speeds: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(TRIALS):
            for count in counts:
                torch.set_num_threads(count)
                self.plain(prompt, WARM_UP_TOKENS)
                speeds[count].append(self.plain(prompt, new_tokens).tokens_per_second)
        fastest = max(counts, key=lambda count: median(speeds[count]))
        torch.set_num_threads(fastest)
        return fastest

    def plain(self, prompt: Sequence[int], new_tokens: int) -> Completion:
        return self._complete(prompt, new_tokens)

    def assisted(self, prompt: Sequence[int], new_tokens: int, guesses: int | None) -> Completion:
        """`guesses` per step, always that many; None: as the library does it by itself."""
        from transformers import GenerationConfig

        assert self._assistant is not None
        options: dict[str, Any] = {}
        if guesses is not None:
            options = {
                "num_assistant_tokens": guesses,
                "num_assistant_tokens_schedule": "constant",
                "assistant_confidence_threshold": 0.0,
            }
        # Made anew each time: some schedules write what they learnt into it.
        self._assistant.generation_config = GenerationConfig(pad_token_id=0, **options)
        return self._complete(prompt, new_tokens, assistant_model=self._assistant)

    def lookup(self, prompt: Sequence[int], new_tokens: int, guesses: int) -> Completion:
        return self._complete(prompt, new_tokens, prompt_lookup_num_tokens=guesses)

    @torch.inference_mode()
    def _complete(self, prompt: Sequence[int], new_tokens: int, **options: Any) -> Completion:
        ids = torch.tensor([list(prompt)])
        clock = _Clock()
        output = self._target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=clock,
            **options,
        )
        tokens = tuple(output[0, len(prompt) :].tolist())
        if len(tokens) != new_tokens:
            raise PipelineError(f"generate of transformers wrote {len(tokens)} tokens in place of {new_tokens}")
        first, last = clock.times[1], clock.times[-1]
        return Completion(tokens, (new_tokens - 1) / (last - first) if last > first else 0.0)


# ---- the contest -----------------------------------------------------------------------------------------------------

Contender = Callable[[str, Sequence[int], int], Awaitable[Completion]]
"""Completes a prompt, given as text and as tokens, by so many tokens."""


def contenders(
    client: Client, single: SingleProcess, thread: ComputeThread, extent: Extent
) -> dict[tuple[str, str], Contender]:
    """By group and setting."""

    def pipeline(policy: str) -> Contender:
        async def complete(prompt: str, ids: Sequence[int], new_tokens: int) -> Completion:
            found = await generate(client, prompt, policy, GREEDY, new_tokens)
            assert found.stats is not None
            return Completion(found.token_ids, found.stats.tokens_per_second)

        return complete

    def alone(call: Callable[..., Completion], *setting: int | None) -> Contender:
        async def complete(prompt: str, ids: Sequence[int], new_tokens: int) -> Completion:
            return await thread.run(call, ids, new_tokens, *setting)

        return complete

    found: dict[tuple[str, str], Contender] = {
        (FLOWSPEC, "as it comes"): pipeline("flowspec"),
        (PIPELINE, f"{STAGES} stages"): pipeline("autoregressive"),
        (PLAIN, "plain"): alone(single.plain),
    }
    if single.has_assistant:
        found[ASSISTED, "library's defaults"] = alone(single.assisted, None)
        for guesses in extent.assistant:
            found[ASSISTED, f"{guesses} guesses, constant"] = alone(single.assisted, guesses)
    for guesses in extent.lookup:
        found[LOOKUP, f"{guesses} guesses"] = alone(single.lookup, guesses)
    return found


async def measure(
    model: str,
    drafter: str | None,
    draft: str | None,
    extent: Extent,
    threads: Sequence[int],
    tell: Callable[[str], None] = print,
) -> tuple[list[Outcome], int]:
    """Every contender on every prompt, and the torch threads of the single process: the best of `threads`.

    Raises `PipelineError` when tokens differ and no tie explains it.
    """
    prompts = heldout_prompts(extent.prompts)
    assistant = draft or ("demo-draft" if model == "demo" else None)
    thread = ComputeThread("transformers")
    try:
        async with LocalCluster(model, STAGES, drafter=drafter, draft=draft) as cluster, cluster.client() as client:
            single = await thread.run(SingleProcess, model, assistant)
            field = contenders(client, single, thread, extent)
            completions: dict[tuple[str, str], list[Completion]] = {name: [] for name in field}
            ids = [(await generate(client, prompt, "autoregressive", GREEDY, 1)).prompt_token_ids for prompt in prompts]
            used = await thread.run(single.use_faster, threads, ids[0], TRIAL_TOKENS)
            for complete in field.values():
                await complete(prompts[0], ids[0], WARM_UP_TOKENS)
            names = list(field)
            for number, (prompt, tokens) in enumerate(zip(prompts, ids, strict=True)):
                tell(f"prompt {number + 1} of {len(prompts)} ...")
                begin = number * len(names) // len(prompts)
                for name in names[begin:] + names[:begin]:
                    completions[name].append(await field[name](prompt, tokens, extent.new_tokens))
    finally:
        await thread.close()
    _check_ties(model, ids, completions)
    return compare(completions), used


def _check_ties(
    model: str, prompts: list[tuple[int, ...]], completions: dict[tuple[str, str], list[Completion]]
) -> None:
    """Raise unless all wrote the same tokens, or each difference from the model's own is a shown tie."""
    whole: WholeModel | None = None
    for number, prompt in enumerate(prompts):
        for tokens in {found[number].token_ids for found in completions.values()}:
            if all(found[number].token_ids == tokens for found in completions.values()):
                continue
            whole = whole or WholeModel(model)
            report = check_generation(whole, prompt, tokens, GREEDY)
            if report.differences:
                raise PipelineError(f"a stream is not what the model alone writes\n{report.text()}")


def compare(completions: dict[tuple[str, str], list[Completion]]) -> list[Outcome]:
    """What the completions of each contender, one per prompt, come to beside those of flowspec and plain `generate`."""
    fast = next(found for (group, _), found in completions.items() if group == FLOWSPEC)
    plain = next(found for (group, _), found in completions.items() if group == PLAIN)
    return [
        Outcome(
            group=group,
            setting=setting,
            tokens_per_second=median(each.tokens_per_second for each in found),
            ratio=median(a.tokens_per_second / b.tokens_per_second for a, b in zip(fast, found, strict=True)),
            same_tokens=sum(each.token_ids == own.token_ids for each, own in zip(found, plain, strict=True)),
        )
        for (group, setting), found in completions.items()
    ]


def best(outcomes: list[Outcome]) -> dict[str, Outcome]:
    """The fastest setting of each group."""
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.group not in found or outcome.tokens_per_second > found[outcome.group].tokens_per_second:
            found[outcome.group] = outcome
    return found


def print_table(outcomes: list[Outcome], prompts: int) -> None:
    from rich.console import Console
    from rich.table import Table

    winners = best(outcomes).values()
    table = Table(width=80)
    table.add_column("who")
    table.add_column("setting")
    for name in ("tokens/s", "flowspec is", "same"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.group,
            outcome.setting,
            f"{outcome.tokens_per_second:.1f}",
            f"{outcome.ratio:.2f}x",
            f"{outcome.same_tokens}/{prompts}",
            style="bold" if outcome in winners else None,
        )
    Console(width=80).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="flowspec against transformers in one process.")
    parser.add_argument("--model", default="demo", help="the demo model, or a directory")
    parser.add_argument("--drafter", help="flowspec's drafter; default: what the model's topology takes by itself")
    parser.add_argument("--draft", help="directory of a draft model, for both sides")
    parser.add_argument(
        "--threads", type=int, help="torch threads of the single process; default: one or all cores, as is faster"
    )
    parser.add_argument("--quick", action="store_true", help="fewer prompts, tokens and settings")
    options = parser.parse_args()
    extent = QUICK if options.quick else FULL
    counts = [options.threads] if options.threads else sorted({1, os.cpu_count() or 1})
    outcomes, threads = run(measure(options.model, options.drafter, options.draft, extent, counts))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "extent": asdict(extent),
        "threads": threads,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "best": {group: outcome.setting for group, outcome in best(outcomes).items()},
    }
    OUTPUT.write_text(json.dumps(values, indent=2) + "\n")
    print_table(outcomes, extent.prompts)
    print(f"{threads} torch thread(s) in the single process; written to {OUTPUT}")


if __name__ == "__main__":
    run_program(main)
