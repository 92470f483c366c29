"""`flowspec demo`: the shipped model over processes, with and without speculation: the same tokens both times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowspec.cli.requests import check_counts, options_of
from flowspec.cli.traces import check_trace, write_trace
from flowspec.errors import PipelineError
from flowspec.program import debugging

if TYPE_CHECKING:
    from rich.console import Console

    from flowspec.client import Client, Generation
    from flowspec.wire.messages import GenerationStats
    from flowspec.wire.parameters import SamplingParameters

POLICIES = ("autoregressive", "flowspec")
WARM_UP_TOKENS = 8
DRAFTED = "green"

BOARDS = "paper-7b"
"""The profile of the slow devices that the demo ends with."""
BOARD_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt, completed by both policies."""

    plain: Generation
    fast: Generation
    sampling: SamplingParameters

    @property
    def same(self) -> bool:
        return self.plain.token_ids == self.fast.token_ids


def demo(
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write for each prompt.")] = 128,
    stages: Annotated[int, typer.Option(help="Stages that share the model's 8 layers.")] = 4,
    temperature: Annotated[float, typer.Option(help="At 0 so small a model soon repeats itself.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what all nodes did, for ui.perfetto.dev.")
    ] = None,
    boards: Annotated[
        bool, typer.Option("--boards/--no-boards", help="At the end one prompt as on slow boards, which are emulated.")
    ] = True,
) -> None:
    """Complete three Python prompts on the shipped model, split over processes.

    Each is completed by plain pipelining and by flowspec; both must write the same tokens. Then one prompt once more,
    every node and link as slow as those of small boards.
    """
    from flowspec.cli.models import check_models
    from flowspec.cluster import local_topology
    from flowspec.runtime.loop import run

    options = options_of(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    check_counts(stages=stages)
    check_trace(trace)
    topology = local_topology("demo", stages)
    check_models(topology)
    fine = run(_demo(topology, options, trace))
    if boards:
        fine = run(_on_boards(stages, options)) and fine
    if not fine:
        raise typer.Exit(1)


async def _demo(topology: Any, options: dict[str, Any], trace: Path | None) -> bool:
    from rich.console import Console
    from tokenizers import Tokenizer

    from flowspec.cli.render import Readiness
    from flowspec.cluster import LocalCluster
    from flowspec.demo.prompts import DEMO_PROMPTS
    from flowspec.model.hub import resolve_model

    console = Console(highlight=False)
    names = [topology.draft_node.name, *(stage.name for stage in topology.stages)]
    console.print(f"starting {len(names)} processes: {', '.join(names)}")
    began = time.perf_counter()
    readiness = Readiness(names, quiet=True)
    cluster = LocalCluster(topology=topology, progress=readiness.update, debug=debugging())
    # Only to colour single tokens; transformers would take seconds of a core that the nodes need now.
    tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer.from_file(str(resolve_model("demo") / "tokenizer.json")))
    with readiness:
        await cluster.__aenter__()
    try:
        console.print(f"ready after {time.perf_counter() - began:.1f} s at {cluster.address}\n")
        async with cluster.client() as client:
            for policy in POLICIES:
                await client.generate(DEMO_PROMPTS[0], policy=policy, max_new_tokens=WARM_UP_TOKENS)
            comparisons = [
                await _compare(console, client, tokenizer, prompt, {**options, "trace": trace is not None}, number)
                for number, prompt in enumerate(DEMO_PROMPTS, start=1)
            ]
    finally:
        await cluster.close()
    if trace is not None:
        write_trace(trace, [each for comparison in comparisons for each in (comparison.plain, comparison.fast)])
    _print_table(console, comparisons)
    return _judge(console, topology.model, topology.dtype, comparisons)


async def _compare(
    console: Console, client: Client, tokenizer: Any, prompt: str, options: dict[str, Any], number: int
) -> Comparison:
    from rich.rule import Rule

    console.print(Rule(f"prompt {number}", align="left", style="dim"), width=min(80, console.width))
    plain = await client.generate(prompt, policy="autoregressive", **options)
    console.print(f"[dim]autoregressive: {_rate(plain.stats)}; flowspec, accepted drafts in[/] [{DRAFTED}]colour[/]:\n")
    console.print(prompt, end="", style="bold", markup=False, soft_wrap=True)
    stream = client.stream(prompt, policy="flowspec", **options)
    painter: Painter | None = None
    async for chunk in stream:
        if painter is None:
            assert stream.started is not None
            painter = Painter(console, tokenizer, stream.started.prompt_token_ids)
        painter.paint(chunk.token_ids, chunk.drafted)
    if painter is not None:
        painter.finish()
    fast = stream.generation
    if stream.started is None:
        raise PipelineError("the coordinator ended the request before it had begun")
    console.print(f"\n[dim]flowspec: {_rate(fast.stats)}[/]\n")
    return Comparison(plain, fast, stream.started.sampling)


async def _on_boards(stages: int, options: dict[str, Any]) -> bool:
    """The first prompt on emulated devices and links; whether both policies wrote the same."""
    from rich.console import Console

    from flowspec.cluster import LocalCluster
    from flowspec.demo.prompts import DEMO_PROMPTS
    from flowspec.topology import Topology
    from flowspec.topology.profiles import load_profile

    console, profile = Console(highlight=False), load_profile(BOARDS)
    few = {**options, "max_new_tokens": min(BOARD_TOKENS, options["max_new_tokens"])}
    stage, link = profile.stage, profile.link
    console.print(
        f"\nprompt 1 once more, {few['max_new_tokens']} tokens, as on boards that take "
        f"{stage.base_ms + stage.per_token_ms:.0f} ms a stage,\n{link.rate_mbit:g} Mbit/s between them "
        f"(emulated, profile {BOARDS}):"
    )
    topology = Topology.local("demo", stages, profile=BOARDS)
    async with LocalCluster(topology=topology, debug=debugging()) as cluster, cluster.client() as client:
        await client.generate(DEMO_PROMPTS[0], policy="flowspec", max_new_tokens=2)
        stream = client.stream(DEMO_PROMPTS[0], policy="flowspec", **few)
        async for _ in stream:
            pass
        fast = stream.generation
        plain = await client.generate(DEMO_PROMPTS[0], policy="autoregressive", **few)
    if stream.started is None or plain.stats is None or fast.stats is None:
        raise PipelineError("a generation came without its figures")
    before, after = plain.stats.tokens_per_second, fast.stats.tokens_per_second
    ratio = f", {after / before:.1f}x" if before else ""
    console.print(f"autoregressive {before:.1f}/s, flowspec {after:.1f}/s{ratio}")
    return _judge(console, topology.model, topology.dtype, [Comparison(plain, fast, stream.started.sampling)])


class Painter:
    """Prints tokens as they come, those that were drafted in colour."""

    def __init__(self, console: Console, tokenizer: Any, prompt: tuple[int, ...]) -> None:
        from flowspec.model.text import Decoder

        self._console = console
        self._decoder = Decoder(tokenizer, prompt)

    def paint(self, tokens: tuple[int, ...], drafted: tuple[bool, ...]) -> None:
        for token, guessed in zip(tokens, drafted, strict=True):
            self._print(self._decoder.push(token), DRAFTED if guessed else None)

    def finish(self) -> None:
        self._print(self._decoder.finish(), None)
        self._console.print()

    def _print(self, text: str, style: str | None) -> None:
        self._console.print(text, end="", style=style, markup=False, soft_wrap=True)


def _rate(stats: GenerationStats | None) -> str:
    if stats is None:
        raise PipelineError("a generation came without its figures")
    return f"{stats.new_tokens} tokens at {stats.tokens_per_second:.1f}/s"


def _print_table(console: Console, comparisons: list[Comparison]) -> None:
    """Tokens per second of both policies and what speculation gained, in at most 80 columns."""
    from rich.table import Table

    table = Table(title="tokens per second", title_justify="left", width=min(80, console.width))
    for name in ("prompt", "tokens", "autoregressive", "flowspec", "ratio", "accepted", "per verdict"):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    for number, comparison in enumerate(comparisons, start=1):
        plain, fast = comparison.plain.stats, comparison.fast.stats
        assert plain is not None
        assert fast is not None
        ratio = fast.tokens_per_second / plain.tokens_per_second if plain.tokens_per_second else 0.0
        table.add_row(
            str(number),
            str(fast.new_tokens),
            f"{plain.tokens_per_second:.1f}",
            f"{fast.tokens_per_second:.1f}",
            f"{ratio:.2f}x",
            f"{fast.accepted}/{fast.drafted}",
            f"{fast.accepted_per_verdict:.2f}",
        )
    console.print(table)


def _judge(console: Console, model: str, dtype: str, comparisons: list[Comparison]) -> bool:
    """Did both policies write the same tokens? A difference is let pass only where it is shown to be a tie."""
    if all(comparison.same for comparison in comparisons):
        where = f" for all {len(comparisons)} prompts" if len(comparisons) > 1 else ""
        console.print(f"both policies wrote the same tokens{where}")
        return True
    from flowspec.model.check import WholeModel, check_generation

    whole, fine = WholeModel(model, dtype), True
    for number, comparison in enumerate(comparisons, start=1):
        if comparison.same:
            continue
        for policy, generation in zip(POLICIES, (comparison.plain, comparison.fast), strict=True):
            report = check_generation(whole, generation.prompt_token_ids, generation.token_ids, comparison.sampling)
            fine = fine and not report.differences
            console.print(f"prompt {number}, {policy}: {report.text()}", markup=False)
    told = "they differ only in shown ties" if fine else "ERROR: they differ, and not by a tie"
    console.print(f"the policies did not write the same tokens: {told}")
    return fine
