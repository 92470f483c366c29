"""Which spare stands in for which stage: the coordinator's picture of its spares.

Pure: it is told what was heard and lost, and at what time. A spare keeps its place until it is lost itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class KnownSpare:
    incarnation: str
    last_heard: float


class StandIns:
    """`patience`: seconds that a lost stage has to come back by itself; `deadline`: of silence, for a spare."""

    def __init__(self, spares: Sequence[str], *, patience: float, deadline: float) -> None:
        self._names = tuple(spares)
        self._patience = patience
        self._deadline = deadline
        self._heard: dict[str, KnownSpare] = {}
        self._missing: dict[str, float] = {}
        """Lost stages, and since when."""
        self._standing: dict[str, tuple[str, str]] = {}
        """Stage -> spare and its incarnation."""

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Pairs (stage, spare)."""
        return tuple((stage, spare) for stage, (spare, _) in self._standing.items())

    def stage_of(self, spare: str) -> str | None:
        """The stage that `spare` stands in for."""
        return next((stage for stage, (name, _) in self._standing.items() if name == spare), None)

    def expected(self, stage: str) -> str | None:
        """The incarnation of the spare that has the place of `stage`; None: it is the stage's own."""
        return self._standing[stage][1] if stage in self._standing else None

    def standby(self, name: str, incarnation: str, now: float) -> None:
        """A spare was heard."""
        if name in self._names:
            self._heard[name] = KnownSpare(incarnation, now)

    def excuse(self, seconds: float) -> None:
        """For so long nobody could have been heard here."""
        for known in self._heard.values():
            known.last_heard += seconds

    def lost(self, stage: str, now: float) -> None:
        """A stage was lost, or the spare that stood in for it: its place is its own again."""
        self._missing[stage] = now
        self._standing.pop(stage, None)

    def found(self, stage: str) -> None:
        """A stage is there again, be it by its spare."""
        self._missing.pop(stage, None)

    def failed(self, now: float) -> list[str]:
        """Stages whose stand-in has fallen silent, or was started again: it does not stand there any more."""
        return [
            stage
            for stage, (spare, incarnation) in self._standing.items()
            if self._heard[spare].incarnation != incarnation or self._silent(spare, now)
        ]

    def due(self, now: float) -> list[str]:
        """Give spares that are there to stages that have been missing for long; returns those stages."""
        given = []
        for stage, since in self._missing.items():
            spare = self._idle(now) if stage not in self._standing and now - since >= self._patience else None
            if spare is not None:
                self._standing[stage] = (spare, self._heard[spare].incarnation)
                given.append(stage)
        return given

    def _idle(self, now: float) -> str | None:
        busy = {spare for spare, _ in self._standing.values()}
        return next(
            (name for name in self._names if name in self._heard and name not in busy and not self._silent(name, now)),
            None,
        )

    def _silent(self, spare: str, now: float) -> bool:
        return now - self._heard[spare].last_heard > self._deadline
