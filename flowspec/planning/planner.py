"""A pipe for the devices that there are: who holds which layers, who drafts, and how fast that will be.

Every alternative is simulated with the schedulers that would run it: all devices and fewer of them, the drafter here
and there, with speculation and without. Knows no topology file, no checkpoint and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, inf

from flowspec.errors import ConfigurationError
from flowspec.planning.division import Device, ModelSizes, Ranges, divide, shown, too_small
from flowspec.planning.estimate import Estimate, Workload, estimate
from flowspec.planning.pipe import DraftTime, LinkTime, SimulatedPipe, StageTime
from flowspec.schedule.options import PolicyOptions
from flowspec.schedule.window import TYPICAL_TOKENS

MOST_SUBSETS = 300
"""Choices of devices of one number that are all tried; where there are more, the fastest, and those with more memory
where theirs does not suffice (`_exchanges`)."""

NOISE = 0.01
"""By how much one pipe has to be faster than another to be called faster."""

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
    """`candidates` are the best of each kind that was tried, the chosen one first and then the fastest first. Of those
    that are the same pipe, with equal devices in other places, it is the first in the order of the devices."""

    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]

    def shown(self, most: int) -> tuple[Candidate, ...]:
        """The best for each number of stages, and the fastest of the others up to `most` in all; in the same order."""
        best = list({len(each.stages): each for each in reversed(self.candidates)}.values())
        others = [each for each in self.candidates if each not in best]
        kept = [*best, *others[: max(0, most - len(best))]]
        return tuple(each for each in self.candidates if each in kept)


def plan(
    devices: Sequence[Device],
    model: ModelSizes,
    links: Links,
    workload: Workload,
    *,
    drafter: str | None = None,
    present: str | None = None,
    options: Mapping[str, PolicyOptions] | None = None,
) -> Plan:
    """The best use of `devices`, which are in pipe order. `drafter` names the one that drafts; None: try each that can.
    `present` names the one that drafts so far, and does so in the plan where no other is faster by more than noise.
    `options` are those of policies that are not to run with their defaults.

    Raises `ConfigurationError` when nobody may draft, when the drafter fits nowhere, when no device is left for a
    stage, and when the model fits on no choice of devices.
    """
    drafting = [each for each in devices if each.draft is not None and drafter in (None, each.name)]
    if not drafting:
        raise ConfigurationError(
            "no device can hold the drafter" if drafter is None else f"{drafter} cannot hold the drafter",
            hint="nothing says how long a step of the drafter takes there",
        )
    fitting = [each for each in drafting if each.holds(model.draft_bytes)]
    if not fitting:
        raise _drafter_too_large(drafting, model)
    found: dict[_Likeness, Candidate] = {}
    for draft in sorted(fitting, key=lambda each: each.name != present):
        others = [each for each in _beside(draft, devices) if each.holds(min(model.bytes))]
        for count in range(1, len(others) + 1):
            best = _best_choice(others, count, model)
            if best is None:
                continue
            layout = _layout(draft, best, model, links)
            likeness = _likeness(layout.pipe)
            if likeness not in found:
                found[likeness] = _candidate(layout, workload, options or {})
    if not found:
        raise _no_division(devices, fitting, model)
    return Plan(_ordered(found.values(), present))


def _ordered(found: Iterable[Candidate], present: str | None) -> tuple[Candidate, ...]:
    """The fastest first; before it the fastest in which `present` drafts, if that is as fast."""
    fastest = sorted(found, key=lambda each: -each.best.tokens_per_second)
    enough = (1.0 - NOISE) * fastest[0].best.tokens_per_second
    same = [each for each in fastest if each.draft.name == present and each.best.tokens_per_second >= enough]
    return tuple(sorted(fastest, key=lambda each: each is not same[0])) if same else tuple(fastest)


def _beside(draft: Device, devices: Sequence[Device]) -> list[Device]:
    """Those that may hold layers while `draft` drafts."""
    return [each for each in devices if each is not draft and each.seconds < inf]


def _drafter_too_large(drafting: Sequence[Device], model: ModelSizes) -> ConfigurationError:
    largest = max(drafting, key=lambda each: each.memory or 0)
    others = ", and no other device that can draft has more" if len(drafting) > 1 else ""
    return ConfigurationError(
        f"the drafter needs {shown(model.draft_bytes)}; {largest.name} has {shown(largest.memory or 0)}{others}",
        hint="choose a smaller drafter or a shorter context (limits.context), or let a device with more memory draft",
    )


def _no_division(devices: Sequence[Device], fitting: Sequence[Device], model: ModelSizes) -> ConfigurationError:
    """What is missing where there is most to be had: beside the draft node that leaves most memory to stages."""
    draft = max(fitting, key=lambda each: sum(other.memory or 0 for other in _beside(each, devices)))
    stages = _beside(draft, devices)
    if not stages:
        return ConfigurationError(
            f"there is no device for a stage beside {draft.name}, which drafts",
            hint="add a device, or say how long a layer takes on one that can only draft",
        )
    return too_small(stages, model, draft)


# ---- who takes part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Division:
    """Some devices and what each of them holds."""

    devices: tuple[Device, ...]
    ranges: Ranges
    cost: tuple[float, float]
    """Seconds of the slowest stage, then of all of them."""

    def is_tight(self, model: ModelSizes) -> bool:
        """Somebody has no memory for one layer more."""
        more = max(model.bytes)
        held = (model.bytes_of(*span) for span in self.ranges)
        return not all(device.holds(size + more) for device, size in zip(self.devices, held, strict=True))


def _division(chosen: tuple[Device, ...], model: ModelSizes) -> _Division | None:
    ranges = divide(chosen, model)
    if ranges is None:
        return None
    times = [model.work_of(*span) * device.seconds for device, span in zip(chosen, ranges, strict=True)]
    return _Division(chosen, ranges, (max(times), sum(times)))


def _best_choice(devices: Sequence[Device], count: int, model: ModelSizes) -> _Division | None:
    """Of all choices of `count` devices the one with the least slowest stage, and then with the least sum; of a part of
    them where they are too many. None where no choice that is tried holds the model."""
    if comb(len(devices), count) <= MOST_SUBSETS:
        divisions = (_division(chosen, model) for chosen in combinations(devices, count))
        return min((each for each in divisions if each is not None), key=lambda each: each.cost, default=None)
    best: _Division | None = None
    for chosen in _exchanges(devices, count):
        found = _division(chosen, model)
        if found is None:
            continue
        if best is None or found.cost < best.cost:
            best = found
        # What comes in is slower, so it helps only as long as somebody is full and others work in its place.
        if not found.is_tight(model):
            break
    return best


def _exchanges(devices: Sequence[Device], count: int) -> Iterator[tuple[Device, ...]]:
    """The fastest `count` of `devices`, then again and again the one with least memory exchanged for the next fastest
    with more, until they are those with most memory. All in the order of `devices`."""

    def memory(index: int) -> float:
        limit = devices[index].memory
        return inf if limit is None else limit

    fastest = sorted(range(len(devices)), key=lambda index: devices[index].seconds)
    chosen, rest = fastest[:count], fastest[count:]
    yield tuple(devices[index] for index in sorted(chosen))
    for index in rest:
        # Of several with least memory the slowest goes: `chosen` has the fastest first.
        least = min(reversed(chosen), key=memory)
        if memory(index) > memory(least):
            chosen.remove(least)
            chosen.append(index)
            yield tuple(devices[each] for each in sorted(chosen))


# ---- what comes of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """Who does what, and the pipe that this makes."""

    draft: Device
    stages: tuple[Holding, ...]
    pipe: SimulatedPipe


def _layout(draft: Device, division: _Division, model: ModelSizes, links: Links) -> _Layout:
    stages = tuple(
        Holding(device, first, end, model.bytes_of(first, end), model.work_of(first, end) * device.seconds)
        for device, (first, end) in zip(division.devices, division.ranges, strict=True)
    )
    return _Layout(draft, stages, pipe_of(draft, stages, model, links))


def _candidate(layout: _Layout, workload: Workload, options: Mapping[str, PolicyOptions]) -> Candidate:
    draft, stages, pipe = layout.draft, layout.stages, layout.pipe
    estimates = tuple(estimate(pipe, policy, workload, options.get(policy)) for policy in PLANNED)
    return Candidate(draft, stages, pipe, _bottleneck(draft, stages, pipe), estimates)


_Likeness = tuple[object, ...]


def _likeness(pipe: SimulatedPipe) -> _Likeness:
    """Equal for pipes whose times agree in three digits: what is left is noise of measuring, and of dividing."""

    def rough(seconds: float) -> float:
        return float(f"{seconds:.2e}")

    stages = tuple(
        (stage.layers, *((tokens, rough(seconds)) for tokens, seconds in stage.curve)) for stage in pipe.stages
    )
    return stages, pipe.links, pipe.returns, rough(pipe.draft.base), rough(pipe.draft.per_token)


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
