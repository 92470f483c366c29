"""A pipe for the devices that there are: who holds which layers, who drafts, and how fast that will be.

Every alternative is simulated with the schedulers that would run it: all devices and fewer of them, the drafter here
and there, with speculation and without. Knows no topology file, no checkpoint and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from flowspec.errors import ConfigurationError
from flowspec.planning.division import TYPICAL_TOKENS, Device, ModelSizes, Ranges, divide, too_small
from flowspec.planning.estimate import Estimate, Workload, estimate
from flowspec.planning.pipe import DraftTime, LinkTime, SimulatedPipe, StageTime

MOST_SUBSETS = 300
"""Choices of devices of one number that are tried; where there are more, the slowest devices are left out in turn."""

PLANNED = ("flowspec", "autoregressive")
"""With speculation, and without."""

Links = Callable[[str, str], LinkTime]
"""The hop from one device to another."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one device of a plan holds."""

    device: Device
    first: int
    end: int
    bytes: int
    seconds: float
    """Of a typical segment."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to use the devices."""

    draft: Device
    stages: tuple[Holding, ...]
    pipe: SimulatedPipe
    bottleneck: str
    """The stage or link that takes longest for a typical segment."""
    estimates: tuple[Estimate, ...]

    @property
    def best(self) -> Estimate:
        """Of the policies, the fastest."""
        return max(self.estimates, key=lambda each: each.tokens_per_second)

    def of(self, policy: str) -> Estimate:
        return next(each for each in self.estimates if each.policy == policy)


@dataclass(frozen=True, slots=True)
class Plan:
    """`candidates` are the best of each kind that was tried, the fastest first."""

    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]


def plan(
    devices: Sequence[Device],
    model: ModelSizes,
    links: Links,
    workload: Workload,
    *,
    drafter: str | None = None,
    policies: Sequence[str] = PLANNED,
) -> Plan:
    """The best use of `devices`, which are in pipe order. `drafter` names the one that drafts; None: try each that can.

    Raises `ConfigurationError` when nobody may draft, or when the model fits on no choice of devices.
    """
    drafting = [each for each in devices if each.draft is not None and drafter in (None, each.name)]
    if not drafting:
        raise ConfigurationError(
            "no device can hold the drafter" if drafter is None else f"{drafter} cannot hold the drafter",
            hint="nothing says how long a step of the drafter takes there",
        )
    found = []
    for draft in drafting:
        if draft.memory is not None and model.draft_bytes > draft.memory:
            continue
        others = [each for each in devices if each is not draft]
        for count in range(1, len(others) + 1):
            best = _best_choice(others, count, model)
            if best is not None:
                found.append(_candidate(draft, *best, model, links, workload, policies))
    if not found:
        raise too_small(devices, model)
    return Plan(tuple(sorted(found, key=lambda each: -each.best.tokens_per_second)))


def _best_choice(devices: Sequence[Device], count: int, model: ModelSizes) -> tuple[tuple[Device, ...], Ranges] | None:
    """Of all choices of `count` devices the one with the least slowest stage, and then with the least sum."""
    best: tuple[tuple[float, float], tuple[Device, ...], Ranges] | None = None
    for chosen in _choices(devices, count):
        ranges = divide(chosen, model)
        if ranges is None:
            continue
        times = [model.work_of(*span) * device.seconds for device, span in zip(chosen, ranges, strict=True)]
        key = max(times), sum(times)
        if best is None or key < best[0]:
            best = key, chosen, ranges
    return best[1:] if best is not None else None


def _choices(devices: Sequence[Device], count: int) -> Iterator[tuple[Device, ...]]:
    if comb(len(devices), count) <= MOST_SUBSETS:
        yield from combinations(devices, count)
        return
    fastest = sorted(devices, key=lambda each: each.seconds)[:count]
    yield tuple(each for each in devices if each in fastest)


def _candidate(
    draft: Device,
    chosen: tuple[Device, ...],
    ranges: Ranges,
    model: ModelSizes,
    links: Links,
    workload: Workload,
    policies: Sequence[str],
) -> Candidate:
    stages = tuple(
        Holding(device, first, end, model.bytes_of(first, end), model.work_of(first, end) * device.seconds)
        for device, (first, end) in zip(chosen, ranges, strict=True)
    )
    pipe = pipe_of(draft, stages, model, links)
    estimates = tuple(estimate(pipe, policy, workload) for policy in policies)
    return Candidate(draft, stages, pipe, _bottleneck(draft, stages, pipe), estimates)


def pipe_of(draft: Device, stages: Sequence[Holding], model: ModelSizes, links: Links) -> SimulatedPipe:
    """The pipe of a draft node and some stages."""
    names = [draft.name, *(stage.device.name for stage in stages)]
    times = []
    for stage in stages:
        work = model.work_of(stage.first, stage.end)
        curve = tuple((tokens, seconds * work) for tokens, seconds in stage.device.layer)
        times.append(StageTime(curve, stage.end - stage.first))
    return SimulatedPipe(
        tuple(times),
        tuple(links(*hop) for hop in zip(names, [*names[1:], names[0]], strict=True)),
        draft.draft or DraftTime(),
        returns=tuple(links(name, names[0]) for name in names[1:]),
    )


def _bottleneck(draft: Device, stages: Sequence[Holding], pipe: SimulatedPipe) -> str:
    """Of stages and links the one between two of whose segments most time passes."""
    slowest = max(stages, key=lambda stage: stage.seconds)
    names = [draft.name, *(stage.device.name for stage in stages)]
    busiest, link = max(
        ((link.busy(TYPICAL_TOKENS), index) for index, link in enumerate(pipe.links[1:-1], start=1)), default=(0.0, 0)
    )
    if busiest > slowest.seconds:
        return f"the link {names[link]} -> {names[link + 1]}"
    return slowest.device.name
