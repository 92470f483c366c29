"""On a virtual clock, with a drafter whose first guess is right for 65 % of the tokens: what the schedule is worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import PipeProfile, SessionRequested
from tests.schedule.fake_pipe import FakePipe, Target, Timing


def own_cores(tokens: int) -> float:
    return 0.06 + 0.0006 * (tokens - 1)


def shared_cores(tokens: int) -> float:
    return 0.001 + 0.0001 * (tokens - 1)


def rate(policy: str, stage: Callable[[int], float], link: float, draft: float, cores: int | None) -> float:
    """Tokens per second of virtual time over 300 tokens and four stages."""
    curve = tuple((tokens, stage(tokens)) for tokens in (1, 2, 4, 8, 16, 32, 64, 128))
    shared = ((cores, (0, 1, 2, 3), (curve,) * 4),) if cores else ()
    scheduler = Scheduler(PipeProfile((curve,) * 4, (link,) * 5, shared, bool(cores)))
    timing = Timing((stage,) * 4, link=link, message=link, draft=lambda tokens: draft, layers=8, cores=cores)
    pipe = FakePipe(scheduler, timing, target=Target(3))
    pipe.request(SessionRequested("s", tuple(range(40)), policy, 300, frozenset()))
    return pipe.run()["s"].rate


@pytest.mark.parametrize(
    ("stage", "link", "draft", "cores", "least"),
    [(own_cores, 0.002, 0.001, None, 3.3), (shared_cores, 0.0001, 0.0007, 2, 1.5)],
    ids=["own cores", "shared cores"],
)
def test_continuous_speculation_beats_plain_pipelining(
    stage: Callable[[int], float], link: float, draft: float, cores: int | None, least: float
) -> None:
    plain = rate("autoregressive", stage, link, draft, cores)
    assert rate("flowspec", stage, link, draft, cores) > least * plain
