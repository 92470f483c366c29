"""The states that the target's features give a head, for the positions whose rows have not been made from them yet.

A run of positions without gaps, that grows at its end and is forgotten from its beginning. It knows no tokens, no rows
and no features: what the target sent was projected before.
"""

from __future__ import annotations

from typing import Final

import torch

from flowspec.errors import InvariantViolation
from flowspec.model.columns import IntArray

SPARE: Final = 32
"""Positions that the buffer has room for at least."""


class TrueStates:
    """States of the positions `first <= p < end`, and room for at most `limit` positions in all.

    Adding k positions costs time in proportion to k, however many there are; what is forgotten is given back.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.first = 0
        self.end = 0
        self._buffer: torch.Tensor | None = None  # (room, hidden)
        self._offset = 0  # of position `first` in the buffer

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def bytes_held(self) -> int:
        return 0 if self._buffer is None else self._buffer.numel() * self._buffer.element_size()

    def news(self, first: int, count: int) -> slice:
        """Which of `count` positions from `first` on can be added: none behind a gap, none known, none over `limit`."""
        if not 0 <= first <= self.end:
            return slice(0, 0)
        return slice(self.end - first, max(self.end - first, min(count, self.limit - first)))

    def extend(self, states: torch.Tensor) -> None:
        """Add `states` (k, hidden) of the positions from `end` on."""
        count = len(states)
        used = self._offset + len(self)
        if self._buffer is None or used + count > len(self._buffer):
            used = self._move(len(self) + count, states)
        assert self._buffer is not None
        self._buffer[used : used + count] = states
        self.end += count

    def _move(self, needed: int, like: torch.Tensor) -> int:
        """Into a buffer that fits `needed` positions; returns how many of its places are taken."""
        held, old, offset = len(self), self._buffer, self._offset
        self._buffer = like.new_empty(max(SPARE, 2 * needed), like.shape[1])
        self._offset = 0
        if old is not None:
            self._buffer[:held] = old[offset : offset + held]
        return held

    def forget(self, first: int) -> None:
        """Positions before `first` are needed no more."""
        passed = min(first, self.end) - self.first
        if passed <= 0:
            return
        self.first += passed
        self._offset = self._offset + passed if len(self) else 0
        if self._buffer is not None and len(self._buffer) > max(SPARE, 8 * len(self)):
            self._move(len(self), self._buffer)

    def at(self, positions: IntArray) -> torch.Tensor:
        """States (n, hidden) of `positions` (n,), all of them in first .. end - 1."""
        if self._buffer is None or not self.first <= positions.min() <= positions.max() < self.end:
            raise InvariantViolation(f"the states of [{self.first}, {self.end}) are held, asked for: {positions}")
        places = torch.from_numpy(positions - self.first + self._offset)
        return self._buffer.index_select(0, places.to(self._buffer.device))
