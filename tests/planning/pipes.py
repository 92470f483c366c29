"""Pipes and languages for tests of the simulator."""

from __future__ import annotations

from collections.abc import Callable

from flowspec.planning.language import SyntheticLanguage
from flowspec.planning.pipe import DraftTime, LinkTime, SimulatedPipe, StageTime
from flowspec.schedule.events import GrowTree
from flowspec.synthetic.guesses import Children, Quality

LANGUAGE = SyntheticLanguage(Quality(0.75))

LINK = LinkTime(latency=0.001, rate=150e6 / 8, message=0.002, token_bytes=8192)
STAGE = StageTime.line(0.0594, 0.0006)
DRAFT = DraftTime(0.010)


def even(stages: int) -> SimulatedPipe:
    """Devices that take 60 ms for a token, on links of 150 Mbit/s."""
    return SimulatedPipe.even(stages, STAGE, LINK, DRAFT)


class Clueless:
    """Text as ever, and a drafter whose guesses never come true."""

    def target(self, session: int) -> Callable[[int], int]:
        return LANGUAGE.target(session)

    def opening(self, session: int) -> None:
        return None

    def guesses(self, session: int) -> Clueless:
        return self

    def grow(self, command: GrowTree, width: int) -> Children:
        return tuple(
            (serial, tuple((40_000 + rank, -1.0 - rank) for rank in range(width))) for serial in command.expand
        )
