"""On a virtual clock: where drafts are of no use a pipe is as fast as without, and speculation comes back with them.

Ratios are to `autoregressive` in the same pipe. Nothing here depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import pytest

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import Command, DrafterLost, GrowTree, PipeProfile, SessionRequested
from tests.schedule.fake_pipe import Drafter, FakePipe, HeadLikeDrafter, Result, Target, Timing, mix

Curve = Callable[[int], float]
Guesses = tuple[tuple[int, float], ...]
PROMPT = tuple(range(40))
POINTS = (1, 2, 4, 8, 16, 32, 64, 128)


def device(tokens: int) -> float:
    return 0.06 + 0.0006 * (tokens - 1)


def slow_device(tokens: int) -> float:
    return 0.2 + 0.001 * (tokens - 1)


def core(tokens: int) -> float:
    return 0.001 + 0.0001 * (tokens - 1)


@dataclass(frozen=True)
class Pipe:
    """Stages, links, what a step of the drafter takes, and the cores that all share (None: each node its own)."""

    stages: tuple[Curve, ...]
    link: float
    draft: Curve
    cores: int | None = None

    def scheduler(self) -> Scheduler:
        curves = tuple(tuple((tokens, stage(tokens)) for tokens in POINTS) for stage in self.stages)
        shared = ((self.cores, tuple(range(len(curves))), curves),) if self.cores else ()
        return Scheduler(PipeProfile(curves, (self.link,) * (len(curves) + 1), shared, bool(self.cores)))

    def timing(self, features: float | None = None) -> Timing:
        return Timing(self.stages, self.link, self.link, self.draft, layers=8, cores=self.cores, features=features)


PIPES = {
    "own cores": Pipe((device,) * 4, 0.002, lambda tokens: 0.001),
    "own cores, slow drafter": Pipe((device,) * 4, 0.002, lambda tokens: 0.2),
    "own cores, very slow drafter": Pipe((device,) * 4, 0.002, lambda tokens: 2.0),
    "own cores, a drafter slow per token": Pipe((device,) * 4, 0.002, lambda tokens: 0.002 + 0.01 * tokens),
    "uneven stages": Pipe((device, device, slow_device, device), 0.002, lambda tokens: 0.001),
    "slow links": Pipe((lambda tokens: 0.015,) * 4, 0.04, lambda tokens: 0.001),
    "shared cores": Pipe((core,) * 4, 0.0001, lambda tokens: 0.0007, cores=2),
    "shared cores, slow drafter": Pipe((core,) * 4, 0.0001, lambda tokens: 0.005, cores=2),
    "shared cores, very slow drafter": Pipe((core,) * 4, 0.0001, lambda tokens: 0.05, cores=2),
}


class Wrong(Drafter):
    """Confident, and never right."""

    def children(self, digest: int) -> Guesses:
        return tuple((1 + mix(digest, 99, rank) % 49_999, log(0.95 - 0.3 * rank)) for rank in range(3))


class Nonsensical(Drafter):
    """Damaged scores, tokens that there are not, and one child that is more than certain."""

    def children(self, digest: int) -> Guesses:
        return ((mix(digest, 1) % 50_000, float("nan")), (-5, 0.0), (mix(digest, 2) % 50_000, 3.0), (7, -float("inf")))


class Silent(Drafter):
    """Never has a guess."""

    def children(self, digest: int) -> Guesses:
        return ()


class Changing(Drafter):
    """Right or wrong by `better()`, whenever it is asked."""

    def __init__(self, target: Target, better: Callable[[], bool]) -> None:
        super().__init__(target)
        self.better = better
        self.wrong = Wrong(target)

    def children(self, digest: int) -> Guesses:
        return super().children(digest) if self.better() else self.wrong.children(digest)


class StallingPipe(FakePipe):
    """The drafter never answers after `steps` of them; it is given up `deadline` seconds later."""

    steps_left = 20
    deadline = 1.0

    def obey(self, command: Command, roster: tuple[object, ...]) -> None:  # type: ignore[override]
        if isinstance(command, GrowTree):
            self.steps_left -= 1
            if self.steps_left < 0:
                self.check_growth(command)
                self.at(self.now + self.deadline, lambda: self.tell(DrafterLost(command.session)))
                return
        super().obey(command, roster)  # type: ignore[arg-type]


def generate(
    pipe: Pipe,
    policy: str,
    drafter: Callable[[Target], Drafter] = Drafter,
    *,
    tokens: int = 300,
    features: float | None = None,
    kind: type[FakePipe] = FakePipe,
) -> tuple[Result, FakePipe]:
    target = Target(3)
    fake = kind(pipe.scheduler(), pipe.timing(features), target=target, drafter=drafter(target))
    reads = features is not None
    fake.request(SessionRequested("s", PROMPT, policy, tokens, frozenset(), features=reads))
    result = fake.run()["s"]
    assert result.tokens == target.decode(PROMPT, tokens)
    return result, fake


def rate(result: Result, first: int = 0, last: int = -1) -> float:
    """Tokens per second between two tokens of the output."""
    last = len(result.tokens) - 1 if last < 0 else last
    return (last - first) / (result.times[last] - result.times[first])


@pytest.mark.parametrize("drafter", [Wrong, Nonsensical, Silent])
@pytest.mark.parametrize("name", PIPES)
def test_with_a_useless_drafter_a_pipe_is_as_fast_as_without(name: str, drafter: type[Drafter]) -> None:
    plain, _ = generate(PIPES[name], "autoregressive")
    found, _ = generate(PIPES[name], "flowspec", drafter)
    assert rate(found, 60) > 0.97 * rate(plain)
    # The first tokens, which show what the drafter is worth, included.
    least = 0.93 if (name, drafter) == ("shared cores", Nonsensical) else 0.95
    assert rate(found) > least * rate(plain)


@pytest.mark.parametrize("name", PIPES)
def test_a_good_drafter_never_slows_a_pipe_down(name: str) -> None:
    plain, _ = generate(PIPES[name], "autoregressive")
    found, _ = generate(PIPES[name], "flowspec")
    least = 2.0 if "slow drafter" not in name and "shared" not in name else 1.5 if name == "shared cores" else 0.99
    assert rate(found) > least * rate(plain)


@pytest.mark.parametrize("name", ["own cores", "uneven stages", "shared cores", "own cores, a drafter slow per token"])
def test_speculation_comes_back_when_drafts_improve(name: str) -> None:
    emitted: list[FakePipe] = []

    class Counting(FakePipe):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **keywords)  # type: ignore[arg-type]
            emitted.append(self)

    def better() -> bool:
        return len(emitted[0].results["s"].tokens) >= 200

    plain, _ = generate(PIPES[name], "autoregressive")
    good, _ = generate(PIPES[name], "flowspec", tokens=400)
    found, _ = generate(PIPES[name], "flowspec", lambda target: Changing(target, better), tokens=800, kind=Counting)
    assert rate(found, 60, 200) > 0.97 * rate(plain)
    assert rate(found, 600) > 0.9 * rate(good, 200)


def test_a_drafter_that_stalls_costs_its_guesses_and_no_token() -> None:
    pipe = PIPES["own cores"]
    plain, _ = generate(pipe, "autoregressive")
    found, _ = generate(pipe, "flowspec", kind=StallingPipe)
    assert rate(found, 30) > 0.97 * rate(plain)


def test_steps_of_a_drafter_that_is_slow_per_token_are_small() -> None:
    _, fast = generate(PIPES["own cores"], "flowspec")
    _, slow = generate(PIPES["own cores, a drafter slow per token"], "flowspec")
    assert slow.draft_busy / slow.draft_steps < 0.09
    assert fast.draft_steps > slow.draft_steps


def test_fewer_tokens_are_sent_where_they_take_turns_on_the_same_cores() -> None:
    _, apart = generate(PIPES["own cores"], "flowspec")
    _, together = generate(PIPES["shared cores"], "flowspec")
    finished = [pipe.results["s"].finished for pipe in (apart, together)]
    assert all(finished)
    drafted = [each.drafted for each in finished if each is not None]
    assert drafted[1] < 0.5 * drafted[0]


@pytest.mark.parametrize(("name", "least"), [("own cores", 1.2), ("shared cores", 1.3)])
def test_features_are_worth_what_they_make_of_the_drafts(name: str, least: float) -> None:
    """Against features that come 50 ms late, in a pipe whose round trip is 250 ms or 4 ms."""
    soon, redrafting = generate(PIPES[name], "flowspec", HeadLikeDrafter, features=0.0)
    late, _ = generate(PIPES[name], "flowspec", HeadLikeDrafter, features=0.2 if name == "own cores" else 0.05)
    assert redrafting.redrafted > 100
    assert rate(soon) > least * rate(late)


def test_without_any_features_a_head_costs_nothing() -> None:
    plain, _ = generate(PIPES["shared cores"], "autoregressive")
    found, _ = generate(PIPES["shared cores"], "flowspec", HeadLikeDrafter)
    assert rate(found) > 0.95 * rate(plain)
