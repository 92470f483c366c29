"""Measured speed over what the simulator says of the same devices, text and drafts with software that takes no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from flowspec.bench.matrix import Options, seed_of
from flowspec.bench.pipes import Pipe
from flowspec.bench.questions import QuestionSet
from flowspec.bench.records import Record
from flowspec.bench.statistics import Pace, total
from flowspec.errors import ConfigurationError
from flowspec.planning.estimate import with_rate, with_uneven
from flowspec.planning.language import SyntheticLanguage
from flowspec.planning.pipe import SimulatedPipe
from flowspec.planning.result import SimulationResult
from flowspec.planning.simulator import simulate
from flowspec.planning.sources import pipe_of_profile
from flowspec.schedule.options import read_options
from flowspec.synthetic.calibration import quality_for
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND, Quality
from flowspec.synthetic.text import mix
from flowspec.synthetic.words import WordTokenizer
from flowspec.topology.profiles import load_profile

MODEL_SEED = 0
"""Of the synthetic model, where a topology names none."""

SEEDS = range(1, 13)

TRIAL_TOKENS = 160
TRIAL_SEED = 1
"""What the simulator writes to compare options."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """By policy, over all its runs."""

    measured: dict[str, Pace]
    simulated: dict[str, Pace]
    per_round: float | None
    """Tokens that `chunked` writes in a round of the same texts, the last round of each left out, since it is cut off;
    None where it did not take part as it is set."""

    def of(self, policy: str) -> float:
        """Measured over simulated tokens per second."""
        return self.measured[policy].rate / self.simulated[policy].rate

    def as_values(self) -> dict[str, Any]:
        return {
            "simulated_tokens_per_second": {policy: pace.rate for policy, pace in self.simulated.items()},
            "of_simulated": {policy: self.of(policy) for policy in self.simulated},
            "tokens_per_round": self.per_round,
        }


def efficiency_of(pipe: Pipe, records: Sequence[Record]) -> Efficiency:
    """Simulates every one of the runs, which a synthetic pipe has made."""
    devices, quality = simulated_pipe(pipe), _quality(pipe)
    measured: dict[str, list[Pace]] = {}
    simulated: dict[str, list[Pace]] = {}
    rounds: list[int] = []
    for record in records:
        job = record.job
        result = _simulate(devices, job.policy, job.options, quality, job.seed, job.new_tokens, record.prompt_tokens)
        seconds = (job.new_tokens - 1) / result.tokens_per_second
        measured.setdefault(job.policy, []).append(record.pace)
        simulated.setdefault(job.policy, []).append(Pace(job.new_tokens - 1, seconds))
        if job.policy == "chunked" and not job.options:
            rounds += whole_rounds(result)
    return Efficiency(
        {policy: total(paces) for policy, paces in measured.items()},
        {policy: total(paces) for policy, paces in simulated.items()},
        fmean(rounds) if rounds else None,
    )


def whole_rounds(result: SimulationResult) -> list[int]:
    """Tokens that each round of `chunked` wrote, without the last one."""
    assert result.trace is not None
    return [span.number("tokens") for span in result.trace.spans if span.kind == "emitted"][:-1]


def typical_seed(pipe: Pipe, questions: QuestionSet, new_tokens: int) -> int:
    """The seed among `SEEDS` with whose texts `chunked` comes nearest to the tokens a round that it is to write.

    A few short texts may be much easier or harder to guess than the drafter's quality says.
    """
    devices, quality = simulated_pipe(pipe), _quality(pipe)
    wanted = pipe.tokens_per_round or PAPER_TOKENS_PER_ROUND
    distance: dict[int, float] = {}
    for seed in SEEDS:
        rounds: list[int] = []
        for question in questions.questions:
            prompt = len(WordTokenizer().encode(question.prompt))
            own = seed_of(seed, question)
            rounds += whole_rounds(_simulate(devices, "chunked", (), quality, own, new_tokens, prompt))
        distance[seed] = abs(fmean(rounds) - wanted)
    return min(SEEDS, key=lambda seed: distance[seed])


def fastest(pipe: Pipe, policy: str, candidates: Sequence[Options], count: int) -> list[Options]:
    """The `count` options of `policy` with which the simulator writes fastest."""
    devices, quality = simulated_pipe(pipe), _quality(pipe)
    rates = {
        options: _simulate(devices, policy, options, quality, TRIAL_SEED, TRIAL_TOKENS, 24).tokens_per_second
        for options in candidates
    }
    return sorted(rates, key=lambda options: -rates[options])[:count]


def simulated_pipe(pipe: Pipe) -> SimulatedPipe:
    """The devices and links that `pipe` emulates."""
    if pipe.profile is None:
        raise ConfigurationError(f"{pipe.name}: only a pipe with a profile can be simulated")
    devices = pipe_of_profile(load_profile(pipe.profile), pipe.stages)
    if pipe.rate_mbit is not None:
        devices = with_rate(devices, pipe.rate_mbit * 1e6 / 8)
    return with_uneven(devices, pipe.slow_stage, min(2, pipe.stages) - 1)


def _simulate(
    devices: SimulatedPipe, policy: str, options: Options, quality: Quality, seed: int, tokens: int, prompt: int
) -> SimulationResult:
    return simulate(
        devices,
        policy,
        read_options(policy, options) if options else None,
        language=SyntheticLanguage(quality, mix(MODEL_SEED, seed)),
        tokens=tokens,
        prompt=prompt,
        trace=policy == "chunked",
    )


def _quality(pipe: Pipe) -> Quality:
    return quality_for(pipe.tokens_per_round or PAPER_TOKENS_PER_ROUND)
