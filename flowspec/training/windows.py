"""Training windows cut from tokenised files: an endless, seeded and resumable order.

An epoch holds the files, shuffled, joined, and cut into windows with a fresh offset. The order follows from the seed
and the epoch alone, so two integers are enough to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(slots=True)
class Cursor:
    """Where in the endless order of windows the next batch starts."""

    epoch: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One file's tokens, with what marks its end."""

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    every: int = 1
    """It takes part in one of so many epochs: plain text that there is too much of."""


class WindowStream:
    """Batches of `length + 1` tokens (inputs and their successors overlap), from `cursor` on."""

    def __init__(self, files: Sequence[TokenFile], seed: int = 0, cursor: Cursor | None = None) -> None:
        self._files = list(files)
        self._seed = seed
        self._epochs: dict[tuple[int, int], torch.Tensor] = {}
        self.cursor = cursor or Cursor()

    def next_batch(self, count: int, length: int) -> torch.Tensor:
        """The next `count` windows of `length` inputs, int64 (count, length + 1); the cursor moves on."""
        windows = self._windows(self.cursor.epoch, length)
        while self.cursor.window + count > len(windows):
            if len(windows) < count and self.cursor.window == 0:
                raise ValueError(f"an epoch has {len(windows)} windows of {length} tokens, a batch takes {count}")
            self.cursor = Cursor(self.cursor.epoch + 1, 0)
            windows = self._windows(self.cursor.epoch, length)
        start = self.cursor.window
        self.cursor = Cursor(self.cursor.epoch, start + count)
        return windows[start : start + count].long()

    def _windows(self, epoch: int, length: int) -> torch.Tensor:
        key = (epoch, length)
        if key not in self._epochs:
            self._epochs = {key: self._cut(epoch, length)}
        return self._epochs[key]

    def _cut(self, epoch: int, length: int) -> torch.Tensor:
        random = np.random.default_rng((self._seed, epoch))
        chosen = [file for file in self._files if file.every == 1]
        for every in sorted({file.every for file in self._files} - {1}):
            chosen += [file for file in self._files if file.every == every][epoch % every :: every]
        flat = np.concatenate([chosen[index].tokens for index in random.permutation(len(chosen))])
        offset = int(random.integers(0, max(1, min(length, len(flat) - length))))
        starts = random.permutation(np.arange(offset, max(offset, len(flat) - length), length))
        windows = [flat[start : start + length + 1] for start in starts]
        return torch.from_numpy(np.stack(windows)) if windows else torch.empty(0, length + 1, dtype=torch.int32)


def fixed_windows(files: Sequence[TokenFile], length: int, limit: int) -> torch.Tensor:
    """Up to `limit` windows spread evenly over the files' joined text, the same ones on every call."""
    flat = np.concatenate([file.tokens for file in files])
    starts = np.arange(0, len(flat) - length, length)
    if len(starts) > limit:
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(int)]
    if not len(starts):
        raise ValueError(f"{len(flat)} tokens are too few for one window of {length}")
    return torch.from_numpy(np.stack([flat[start : start + length + 1] for start in starts])).long()


def batches(windows: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """The windows in order, `count` at a time; the last batch may be smaller."""
    yield from torch.split(windows, count)
