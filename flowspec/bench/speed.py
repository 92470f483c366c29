"""Tokens per second of `flowspec` against `autoregressive`, on the same nodes and prompts, in turns.

EOS is ignored, so all runs are of one length; a pair that did not write the same tokens is checked against the model
alone, and only a shown tie is let pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from flowspec.client import Client, Generation
from flowspec.cluster import LocalCluster
from flowspec.errors import PipelineError
from flowspec.model.check import WholeModel, check_generation
from flowspec.wire.parameters import SamplingParameters

POLICIES = ("autoregressive", "flowspec")
WARM_UP_TOKENS = 8
SEED = 7


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over the prompts; `ratio` is that of the medians."""

    temperature: float
    prompts: int
    new_tokens: int
    autoregressive: float
    flowspec: float
    ratio: float
    together: float
    """Ratio of the times that all prompts together take."""
    accepted_per_verdict: float
    acceptance: float
    """Accepted draft tokens per draft token sent."""
    first_token: float
    """Seconds to the first token with flowspec."""
    same_tokens: int
    """Prompts for which both policies wrote the same tokens; the others differ by shown ties only."""


async def compare(cluster: LocalCluster, prompts: list[str], *, temperature: float, new_tokens: int) -> Speed:
    """Each prompt by both policies, the one that begins changing from prompt to prompt."""
    sampling = SamplingParameters(temperature=temperature, seed=SEED)
    results: dict[str, list[Generation]] = {policy: [] for policy in POLICIES}
    async with cluster.client() as client:
        for policy in POLICIES:
            await client.generate(prompts[0], policy=policy, max_new_tokens=WARM_UP_TOKENS)
        for number, prompt in enumerate(prompts):
            for policy in POLICIES[:: 1 if number % 2 == 0 else -1]:
                results[policy].append(await generate(client, prompt, policy, sampling, new_tokens))
    pairs = list(zip(results["autoregressive"], results["flowspec"], strict=True))
    same = sum(plain.token_ids == fast.token_ids for plain, fast in pairs)
    if same < len(pairs):
        _check_ties(cluster, [pair for pair in pairs if pair[0].token_ids != pair[1].token_ids], sampling)
    figures = {policy: [found.stats for found in results[policy] if found.stats is not None] for policy in POLICIES}
    plain_rate, fast_rate = (median(stats.tokens_per_second for stats in figures[policy]) for policy in POLICIES)
    seconds = {policy: sum(1 / stats.tokens_per_second for stats in figures[policy]) for policy in POLICIES}
    fast = figures["flowspec"]
    return Speed(
        temperature=temperature,
        prompts=len(prompts),
        new_tokens=new_tokens,
        autoregressive=plain_rate,
        flowspec=fast_rate,
        ratio=fast_rate / plain_rate,
        together=seconds["autoregressive"] / seconds["flowspec"],
        accepted_per_verdict=median(stats.accepted_per_verdict for stats in fast),
        acceptance=sum(stats.accepted for stats in fast) / max(1, sum(stats.drafted for stats in fast)),
        first_token=median(stats.time_to_first_token for stats in fast),
        same_tokens=same,
    )


async def generate(
    client: Client, prompt: str, policy: str, sampling: SamplingParameters, new_tokens: int
) -> Generation:
    """`new_tokens` tokens, EOS ignored."""
    return await client.generate(
        prompt,
        policy=policy,
        temperature=sampling.temperature,
        seed=sampling.seed,
        max_new_tokens=new_tokens,
        ignore_eos=True,
    )


def _check_ties(
    cluster: LocalCluster, pairs: list[tuple[Generation, Generation]], sampling: SamplingParameters
) -> None:
    """Raise `PipelineError` unless every token of every pair is the model's own, or shown to be a tie."""
    node = cluster.topology.tail
    whole = WholeModel(node.model, node.dtype, cluster.topology.limits.context)
    for generation in (generation for pair in pairs for generation in pair):
        report = check_generation(whole, generation.prompt_token_ids, generation.token_ids, sampling)
        if report.differences:
            raise PipelineError(f"a stream is not what the model alone writes\n{report.text()}")
