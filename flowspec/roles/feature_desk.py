"""Puts together what the stages send of the target's hidden states: features of accepted tokens, in order, all taps.

Every tap of a session is a column that grows at its end alone: what is doubled or stale changes nothing, and what comes
after a gap is dropped, since the stage sends it again as long as it is not acknowledged. Knows no channel, no drafter
and no thread; what it holds is bounded by what is complete in some taps and not yet in all.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from flowspec.wire.messages import Features, RosterEntry

logger = logging.getLogger(__name__)

Deliver = Callable[[str, int, int, torch.Tensor], None]
"""Called with (session, epoch, first position, features (count, sum of the taps' widths)), in order."""


@dataclass(slots=True)
class TapColumn:
    """The hidden states of one tap at positions `begin` .. `end - 1`."""

    begin: int = 0
    end: int = 0
    _parts: deque[torch.Tensor] = field(default_factory=deque)

    def add(self, first: int, part: torch.Tensor) -> None:
        """Take what of (count, hidden) lies at the column's end."""
        if first <= self.end < first + len(part):
            self._parts.append(part[self.end - first :])
            self.end = first + len(part)

    def take(self, count: int) -> torch.Tensor:
        """The first `count` positions, (count, hidden), which leave the column."""
        taken: list[torch.Tensor] = []
        missing = count
        while missing:
            part = self._parts.popleft()
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
            taken.append(part[:missing])
            missing -= len(taken[-1])
        self.begin += count
        return taken[0] if len(taken) == 1 else torch.cat(taken)


@dataclass(slots=True)
class Assembly:
    """One session in one epoch."""

    epoch: int
    row_limit: int
    taps: tuple[int, ...]
    columns: dict[int, TapColumn]
    wanted: bool = True


class FeatureDesk:
    """Features of sessions that were opened with taps; `hidden_size` is the target's."""

    def __init__(self, hidden_size: int, deliver: Deliver) -> None:
        self._hidden_size = hidden_size
        self._deliver = deliver
        self._sessions: dict[str, Assembly] = {}
        self._blamed: set[str] = set()

    def open(self, session: str, epoch: int, taps: Sequence[int], row_limit: int) -> None:
        """A session begins, or begins again in a newer epoch. A tap that is named twice is delivered twice."""
        if taps:
            columns = {tap: TapColumn() for tap in taps}
            self._sessions[session] = Assembly(epoch, row_limit, tuple(taps), columns)

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def abandon(self, session: str | None = None) -> None:
        """Nobody reads the features of this session (None: of any) any more; the next roster tells the stages."""
        for name, assembly in self._sessions.items():
            if session in (None, name):
                assembly.wanted = False
                assembly.columns = {}

    def acknowledge(self, roster: tuple[RosterEntry, ...]) -> tuple[RosterEntry, ...]:
        """`roster` with what is here: positions complete from all taps, or the limit when nobody reads them."""
        if not self._sessions:
            return roster
        return tuple(self._acknowledged(entry) for entry in roster)

    def _acknowledged(self, entry: RosterEntry) -> RosterEntry:
        assembly = self._sessions.get(entry.session)
        if assembly is None or assembly.epoch != entry.epoch:
            return entry
        complete = min((column.end for column in assembly.columns.values()), default=assembly.row_limit)
        return replace(entry, features=complete)

    def hear(self, message: Features, tensors: tuple[torch.Tensor, ...]) -> None:
        """Take what a stage sent, and deliver what became complete by it."""
        assembly = self._sessions.get(message.session)
        if assembly is None or assembly.epoch != message.epoch or not assembly.wanted:
            return
        problem = self._problem(message, tensors, assembly)
        if problem is not None:
            if message.node not in self._blamed:
                self._blamed.add(message.node)
                logger.warning("features from %s are not used: %s", message.node, problem)
            return
        for tap, tensor in zip(message.taps, tensors, strict=True):
            assembly.columns[tap].add(message.first, tensor)
        begin = assembly.columns[assembly.taps[0]].begin
        count = min(column.end for column in assembly.columns.values()) - begin
        if count > 0:
            taken = {tap: column.take(count) for tap, column in assembly.columns.items()}
            features = torch.cat([taken[tap] for tap in assembly.taps], 1)
            self._deliver(message.session, message.epoch, begin, features)

    def _problem(self, message: Features, tensors: tuple[torch.Tensor, ...], assembly: Assembly) -> str | None:
        if len(tensors) != len(message.taps) or len(set(message.taps)) != len(message.taps):
            return f"{len(tensors)} tensors for the taps {list(message.taps)}"
        foreign = [tap for tap in message.taps if tap not in assembly.columns]
        if foreign or not message.taps:
            return f"nobody asked for the taps {foreign}"
        if message.first < 0 or message.count < 1 or message.first + message.count > assembly.row_limit:
            return f"{message.count} positions from {message.first} on, of at most {assembly.row_limit}"
        expected = (message.count, self._hidden_size)
        for tensor in tensors:
            if tuple(tensor.shape) != expected or not tensor.dtype.is_floating_point:
                return f"a tensor of {tensor.dtype} {tuple(tensor.shape)}, not of numbers {expected}"
        return None
