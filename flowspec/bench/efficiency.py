"""Measured speed beside what the simulator says of the same devices, text and drafts.

Once with software that takes no time, which tells what the runtime costs; once with the time that software was measured
to take elsewhere, which tells how well a speed is predicted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from flowspec.planning.pipe import NO_OVERHEADS, Overheads, SimulatedPipe
from flowspec.planning.result import SimulationResult
from flowspec.planning.simulator import Simulation, simulate
from flowspec.planning.sources import pipe_of_profile
from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import Command, Event, PipeProfile, SessionRequested
from flowspec.schedule.options import read_options
from flowspec.synthetic.calibration import quality_for
from flowspec.synthetic.guesses import Quality
from flowspec.synthetic.text import mix
from flowspec.synthetic.words import WordTokenizer
from flowspec.topology.profiles import load_profile

MODEL_SEED = 0
"""Of the synthetic model, where a topology names none."""

SEEDS = range(1, 13)

TRIAL_TOKENS = 160
TRIAL_SEED = 1
"""What the simulator writes to compare options."""

DECISION_TOKENS = 48
"""What it writes to time the scheduler's decisions."""


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


@dataclass(frozen=True, slots=True)
class Prediction:
    """By policy, over all its runs: measured, and simulated with software that takes time."""

    measured: dict[str, Pace]
    predicted: dict[str, Pace]

    def deviation(self, policy: str) -> float:
        """Predicted over measured tokens per second, less 1: above 0 where the pipe was slower than predicted."""
        return self.predicted[policy].rate / self.measured[policy].rate - 1.0

    def as_values(self) -> dict[str, Any]:
        return {
            "predicted_tokens_per_second": {policy: pace.rate for policy, pace in self.predicted.items()},
            "predicted_deviation": {policy: self.deviation(policy) for policy in self.predicted},
        }


def software_of(pipe: Pipe, records: Sequence[Record]) -> Overheads:
    """What software takes beside devices and links, as runs of `autoregressive` on `pipe` show it.

    A pass is one message to each stage and one back, so what it takes beyond the simulated time is shared among them.
    """
    plain = [record for record in records if record.job.policy == "autoregressive"]
    if not plain:
        raise ConfigurationError(f"{pipe.name}: no run of autoregressive tells what software takes")
    bare = efficiency_of(pipe, plain)
    beyond = 1.0 / bare.measured["autoregressive"].rate - 1.0 / bare.simulated["autoregressive"].rate
    return Overheads(message=max(0.0, beyond / (pipe.stages + 1)))


def prediction_of(pipe: Pipe, records: Sequence[Record], software: Overheads) -> Prediction:
    """Simulates every run with `software`, and with the time that this machine takes for the policy's decisions."""
    devices, quality = simulated_pipe(pipe), _quality(pipe)
    measured: dict[str, list[Pace]] = {}
    predicted: dict[str, list[Pace]] = {}
    decisions: dict[tuple[str, Options], float] = {}
    for record in records:
        job = record.job
        if (job.policy, job.options) not in decisions:
            decisions[job.policy, job.options] = decision_seconds(devices, job.policy, job.options, quality)
        overheads = replace(software, decision=decisions[job.policy, job.options])
        result = _simulate(
            devices, job.policy, job.options, quality, job.seed, job.new_tokens, record.prompt_tokens, overheads
        )
        measured.setdefault(job.policy, []).append(record.pace)
        seconds = (job.new_tokens - 1) / result.tokens_per_second
        predicted.setdefault(job.policy, []).append(Pace(job.new_tokens - 1, seconds))
    return Prediction(
        {policy: total(paces) for policy, paces in measured.items()},
        {policy: total(paces) for policy, paces in predicted.items()},
    )


class _TimedScheduler(Scheduler):
    """Adds up the processor time of its own decisions."""

    def __init__(self, profile: PipeProfile) -> None:
        super().__init__(profile)
        self.decisions = 0
        self.seconds = 0.0

    def handle(self, event: Event) -> list[Command]:
        began = time.thread_time()
        commands = super().handle(event)
        self.seconds += time.thread_time() - began
        self.decisions += 1
        return commands


def decision_seconds(devices: SimulatedPipe, policy: str, options: Options, quality: Quality) -> float:
    """What the scheduler takes on this machine to decide about one event, in the mean."""
    run = Simulation(devices, SyntheticLanguage(quality, TRIAL_SEED))
    scheduler = run.scheduler = _TimedScheduler(devices.profile())
    chosen = read_options(policy, options)
    run.request(SessionRequested("trial", (0,) * 24, policy, DECISION_TOKENS, frozenset(), options=chosen))
    run.run()
    return scheduler.seconds / scheduler.decisions


def whole_rounds(result: SimulationResult) -> list[int]:
    """Tokens that each round of `chunked` wrote, without the last one."""
    assert result.trace is not None
    return [span.number("tokens") for span in result.trace.spans if span.kind == "emitted"][:-1]


def typical_seed(pipe: Pipe, questions: QuestionSet, new_tokens: int) -> int:
    """The seed among `SEEDS` with whose texts `chunked` comes nearest to the tokens a round that it is to write.

    A few short texts may be much easier or harder to guess than the drafter's quality says.
    """
    devices, quality = simulated_pipe(pipe), _quality(pipe)
    wanted = pipe.round_tokens
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
    devices: SimulatedPipe,
    policy: str,
    options: Options,
    quality: Quality,
    seed: int,
    tokens: int,
    prompt: int,
    overheads: Overheads = NO_OVERHEADS,
) -> SimulationResult:
    return simulate(
        devices,
        policy,
        read_options(policy, options) if options else None,
        language=SyntheticLanguage(quality, mix(MODEL_SEED, seed)),
        tokens=tokens,
        prompt=prompt,
        overheads=overheads,
        trace=policy == "chunked",
    )


def _quality(pipe: Pipe) -> Quality:
    return quality_for(pipe.round_tokens)
