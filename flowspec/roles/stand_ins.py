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
    leaving: bool = False
    """It was told to stop, and will take no place any more."""


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
        self._dismissed: dict[str, str] = {}
        """Spare -> its incarnation that had a place here last, and has it no more."""

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
            known = self._heard.get(name)
            leaving = known is not None and known.leaving and known.incarnation == incarnation
            self._heard[name] = KnownSpare(incarnation, now, leaving)

    def adopt(self, stage: str, spare: str, incarnation: str, now: float) -> bool:
        """Let a spare go on standing in for `stage`, as a coordinator before this one has said; whether it may.

        Not when another spare has that place, or when it lost its place here.
        """
        if spare not in self._names or stage in self._standing or self.stage_of(spare) is not None:
            return False
        if self._dismissed.get(spare) == incarnation:
            return False
        self.standby(spare, incarnation, now)
        self._standing[stage] = (spare, incarnation)
        return True

    def retire(self, incarnation: str) -> None:
        """A spare was told to stop: it gets no place any more. One that it has it keeps until it is lost."""
        for known in self._heard.values():
            known.leaving = known.leaving or known.incarnation == incarnation

    def hasten(self, stage: str, now: float) -> None:
        """A lost stage will not come back by itself: no need to wait for it."""
        self._missing[stage] = now - self._patience

    def excuse(self, seconds: float) -> None:
        """For so long nobody could have been heard here."""
        for known in self._heard.values():
            known.last_heard += seconds

    def lost(self, stage: str, now: float) -> None:
        """A stage was lost, or the spare that stood in for it: its place is its own again."""
        self._missing[stage] = now
        if stage in self._standing:
            spare, incarnation = self._standing.pop(stage)
            self._dismissed[spare] = incarnation

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
            spare = self.idle(now) if stage not in self._standing and now - since >= self._patience else None
            if spare is not None:
                self._standing[stage] = (spare, self._heard[spare].incarnation)
                given.append(stage)
        return given

    def idle(self, now: float) -> str | None:
        """The first spare that could take a place."""
        busy = {spare for spare, _ in self._standing.values()}
        return next((name for name in self.living(now) if name not in busy and not self._heard[name].leaving), None)

    def living(self, now: float) -> tuple[str, ...]:
        """The spares that are there, busy or not."""
        return tuple(name for name in self._names if name in self._heard and not self._silent(name, now))

    def _silent(self, spare: str, now: float) -> bool:
        return now - self._heard[spare].last_heard > self._deadline
