"""Means over several simulated runs, and what they become when one thing about the pipe changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

from flowspec.errors import ConfigurationError
from flowspec.planning.language import Language, SyntheticLanguage
from flowspec.planning.pipe import NO_OVERHEADS, LinkTime, Overheads, SimulatedPipe, StageTime
from flowspec.planning.result import SimulationResult
from flowspec.planning.simulator import PROMPT, simulate
from flowspec.schedule.continuous import ContinuousSettings
from flowspec.schedule.options import PolicyOptions

APART = 1000
"""Between the seeds of two runs: more than a run has sessions."""

MOST_STAGES = 256
"""Of a pipe whose length is asked for."""


def texts(language: SyntheticLanguage, runs: int) -> tuple[SyntheticLanguage, ...]:
    """`runs` texts that have nothing in common, the first being that of `language`."""
    return tuple(replace(language, seed=language.seed + APART * run) for run in range(runs))


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a pipe, however long it is."""

    languages: tuple[Language, ...]
    """One for each run over which figures are averaged."""
    tokens: int = 256
    sessions: int = 1
    prompt: int = PROMPT
    overheads: Overheads = NO_OVERHEADS
    settings: ContinuousSettings | None = None

    @classmethod
    def synthetic(cls, language: SyntheticLanguage, runs: int, **more: Any) -> Workload:
        return cls(texts(language, runs), **more)

    @property
    def written(self) -> tuple[int, ...]:
        """Tokens that each session of each run writes: those of a language that has fewer than `tokens` end before."""
        openings = [language.opening(session) for language in self.languages for session in range(self.sessions)]
        return tuple(self.tokens if each is None else min(self.tokens, each.length) for each in openings)

    def run(
        self,
        number: int,
        pipe: SimulatedPipe,
        policy: str,
        options: PolicyOptions | None = None,
        *,
        trace: bool = False,
    ) -> SimulationResult:
        """Simulate the run with that number."""
        return simulate(
            pipe,
            policy,
            options,
            language=self.languages[number],
            tokens=self.tokens,
            sessions=self.sessions,
            prompt=self.prompt,
            overheads=self.overheads,
            settings=self.settings,
            seed=number,
            trace=trace,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Means over runs; the names are those of `SimulationResult`. `error` is the standard error of the speed."""

    policy: str
    stages: int
    sessions: int
    runs: int
    tokens_per_second: float
    error: float
    throughput: float
    time_to_first_token: float
    tokens_per_verdict: float
    tokens_per_round: float
    cost: float
    occupancy: tuple[float, ...]
    drafter_occupancy: float

    @classmethod
    def of(cls, policy: str, results: Sequence[SimulationResult]) -> Estimate:
        def mean(figure: Callable[[SimulationResult], float]) -> float:
            return sum(map(figure, results)) / len(results)

        speed = mean(lambda each: each.tokens_per_second)
        spread = sum((each.tokens_per_second - speed) ** 2 for each in results)
        runs, stages = len(results), len(results[0].occupancy)
        return cls(
            policy=policy,
            stages=stages,
            sessions=results[0].sessions,
            runs=runs,
            tokens_per_second=speed,
            error=sqrt(spread / (runs * (runs - 1))) if runs > 1 else 0.0,
            throughput=mean(lambda each: each.throughput),
            time_to_first_token=mean(lambda each: each.time_to_first_token),
            tokens_per_verdict=mean(lambda each: each.tokens_per_verdict),
            tokens_per_round=mean(lambda each: each.tokens_per_round),
            cost=mean(lambda each: each.cost),
            occupancy=tuple(sum(each.occupancy[index] for each in results) / runs for index in range(stages)),
            drafter_occupancy=mean(lambda each: each.drafter_occupancy),
        )

    def as_values(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"occupancy": list(self.occupancy)}


def estimate(pipe: SimulatedPipe, policy: str, workload: Workload, options: PolicyOptions | None = None) -> Estimate:
    """What `policy` makes of `workload` on `pipe`."""
    runs = range(len(workload.languages))
    return Estimate.of(policy, [workload.run(number, pipe, policy, options) for number in runs])


# ---- one thing changed -----------------------------------------------------------------------------------------------


def with_stages(pipe: SimulatedPipe, stages: int) -> SimulatedPipe:
    """So many stages that each take the time that every stage of `pipe` takes: a deeper model, or a shallower one.

    `ConfigurationError` where the stages of `pipe` differ: nobody knows how long another one would take.
    """
    if any(stage.curve != pipe.stages[0].curve for stage in pipe.stages):
        raise ConfigurationError(
            "stages of different times cannot be swept",
            hint="sweep `split`, which divides the whole model evenly, or give --profile in place of the topology",
        )
    return _of_stages(pipe, pipe.stages[0], stages)


def with_split(pipe: SimulatedPipe, stages: int) -> SimulatedPipe:
    """The same model over so many stages alike: together they take the time that the stages of `pipe` take together."""
    points = sorted({tokens for stage in pipe.stages for tokens, _ in stage.curve})
    # Linear between its points is what a sum of such curves is between the points of all of them.
    curve = tuple((tokens, sum(stage.of(tokens) for stage in pipe.stages) / stages) for tokens in points)
    layers = sum(stage.layers for stage in pipe.stages)
    return _of_stages(pipe, StageTime(curve, max(1, round(layers / stages))), stages)


def _of_stages(pipe: SimulatedPipe, stage: StageTime, stages: int) -> SimulatedPipe:
    """So many times `stage`. Links between stages are as the first of them, the outer ones and the tail's way back stay
    as they are, and the others' ways back are as the first stage's."""
    between = pipe.links[1] if len(pipe.stages) > 1 else pipe.links[0]
    return replace(
        pipe,
        stages=(stage,) * stages,
        links=(pipe.links[0], *(between,) * (stages - 1), pipe.links[-1]),
        returns=(*pipe.returns[:1] * (stages - 1), *pipe.returns[-1:]),
    )


def with_latency(pipe: SimulatedPipe, seconds: float) -> SimulatedPipe:
    """Links on which every message is that long under way, beside its bytes."""

    def change(link: LinkTime) -> LinkTime:
        message = None if link.message is None else max(0.0, link.message - link.latency) + seconds
        return replace(link, latency=seconds, message=message)

    return replace(pipe, links=tuple(map(change, pipe.links)), returns=tuple(map(change, pipe.returns)))


def with_rate(pipe: SimulatedPipe, rate: float) -> SimulatedPipe:
    """Links of that many bytes per second."""
    return replace(
        pipe,
        links=tuple(replace(link, rate=rate) for link in pipe.links),
        returns=tuple(replace(link, rate=rate) for link in pipe.returns),
    )


def with_uneven(pipe: SimulatedPipe, factor: float, stage: int = 0) -> SimulatedPipe:
    """One stage that takes `factor` times as long."""
    stages: list[StageTime] = list(pipe.stages)
    stages[stage] = stages[stage].slower(factor)
    return replace(pipe, stages=tuple(stages))


def changed(pipe: SimulatedPipe, workload: Workload, key: str, value: float) -> tuple[SimulatedPipe, Workload]:
    """`pipe` and `workload` with one thing as a sweep wants it; `SWEEPS` says what there is."""
    if key not in SWEEPS:
        raise ConfigurationError(
            f"there is nothing to sweep that is called {key!r}", hint=f"one of: {', '.join(SWEEPS)}"
        )
    whole, least, most = _RANGES[key]
    if not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{key} cannot be {value:g}", hint=f"{kind} from {least:g} to {most:g}")
    match key:
        case "stages":
            return with_stages(pipe, int(value)), workload
        case "split":
            return with_split(pipe, int(value)), workload
        case "sessions":
            return pipe, replace(workload, sessions=int(value))
        case "latency":
            return with_latency(pipe, value / 1e3), workload
        case "rate":
            return with_rate(pipe, value * 1e6 / 8), workload
        case _:
            return with_uneven(pipe, value), workload


SWEEPS = {
    "stages": "stages that each take the same time: the model grows with the pipe",
    "split": "stages over which the same model is divided evenly",
    "sessions": "requests at the same time",
    "latency": "of every link, in milliseconds",
    "rate": "of every link, in Mbit/s",
    "uneven": "how many times as long the first stage takes",
}
"""What can be changed, and what it means."""

_RANGES: dict[str, tuple[bool, float, float]] = {
    "stages": (True, 1, MOST_STAGES),
    "split": (True, 1, MOST_STAGES),
    "sessions": (True, 1, 64),
    "latency": (False, 0, 10_000),
    "rate": (False, 0.001, 1_000_000),
    "uneven": (False, 0.01, 100),
}
