"""What a probe proves: the pipe is in order, so what was sent before it and has not come when it comes is lost.

Pure: it is told what was sent and which stages have answered, and reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_UNDER_WAY = 64
"""Probes that are remembered, the newest ones."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What had been sent when a probe followed it down the pipe, and had not been answered."""

    ticket: int
    """Of the newest segment ever sent."""
    opened: tuple[tuple[str, int], ...] = ()
    """Sessions, with their epochs, whose opening some stage had not acknowledged."""


@dataclass(slots=True)
class Sounding:
    outstanding: Outstanding
    missing: set[str]
    """Stages that have not answered."""


class Soundings:
    """Probes under way through the pipe of the stages `names`, in order."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._under_way: dict[int, Sounding] = {}

    def sent(self, nonce: int, outstanding: Outstanding) -> None:
        self._under_way[nonce] = Sounding(outstanding, set(self._names))
        while len(self._under_way) > MOST_UNDER_WAY:
            del self._under_way[next(iter(self._under_way))]

    def answered(self, nonce: int, stage: str) -> Outstanding | None:
        """A stage saw a probe; what has not come by now is lost when this says what was outstanding.

        Segments are when the tail answers, since they come back from there; openings when the last stage answers,
        since each acknowledges them over its own channel.
        """
        sounding = self._under_way.get(nonce)
        if sounding is None:
            return None
        sounding.missing.discard(stage)
        if not sounding.missing:
            for earlier in [each for each in self._under_way if each <= nonce]:
                del self._under_way[earlier]
            return sounding.outstanding
        return Outstanding(sounding.outstanding.ticket) if stage == self._names[-1] else None

    def silent_stage(self) -> str:
        """The first one that the oldest probe under way has not come from: what is before it does not reach it."""
        oldest = next(iter(self._under_way.values()), None)
        return next((name for name in self._names if oldest is None or name in oldest.missing), self._names[0])

    def clear(self) -> None:
        """The pipe is another one now."""
        self._under_way.clear()
