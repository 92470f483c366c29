"""Training windows cut from tokenised files: an endless, seeded and resumable order.

An epoch holds every library file and half of the test files (the other half in the next epoch), shuffled, joined by
the end token and cut into windows with a fresh offset. The order follows from the seed and the epoch alone, so two
integers are enough to resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flowspec.demo.corpus import Source, Split
from flowspec.demo.tokenizer import END_ID


@dataclass(slots=True)
class Cursor:
    """Where in the endless order of windows the next batch starts."""

    epoch: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One file's tokens, the end token included."""

    tokens: np.ndarray[Any, np.dtype[np.int32]]
    is_test: bool


def encode_sources(tokenizer: Any, sources: list[Source], split: Split) -> list[TokenFile]:
    """The files on one side of the split as tokens, in the order of ``sources``."""
    chosen = [source for source in sources if source.split == split]
    encodings = tokenizer.backend_tokenizer.encode_batch([source.text for source in chosen], add_special_tokens=False)
    return [
        TokenFile(np.array([*encoding.ids, END_ID], dtype=np.int32), source.is_test)
        for source, encoding in zip(chosen, encodings, strict=True)
    ]


class WindowStream:
    """Batches of ``length + 1`` tokens (inputs and their successors overlap), from ``cursor`` on."""

    def __init__(self, files: list[TokenFile], seed: int = 0, cursor: Cursor | None = None) -> None:
        self._files = files
        self._seed = seed
        self._epochs: dict[tuple[int, int], torch.Tensor] = {}
        self.cursor = cursor or Cursor()

    def next_batch(self, count: int, length: int) -> torch.Tensor:
        """The next ``count`` windows of ``length`` inputs, as an int64 tensor; the cursor moves on."""
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
        tests = [file for file in self._files if file.is_test]
        chosen = [file for file in self._files if not file.is_test] + tests[epoch % 2 :: 2]
        flat = np.concatenate([chosen[index].tokens for index in random.permutation(len(chosen))])
        offset = int(random.integers(0, max(1, min(length, len(flat) - length))))
        starts = np.arange(offset, len(flat) - length, length)
        windows = np.stack([flat[start : start + length + 1] for start in random.permutation(starts)])
        return torch.from_numpy(windows)


def fixed_windows(files: list[TokenFile], length: int, limit: int) -> torch.Tensor:
    """Up to ``limit`` windows spread evenly over the files' joined text, the same ones on every call."""
    flat = np.concatenate([file.tokens for file in files])
    starts = np.arange(0, len(flat) - length, length)
    if len(starts) > limit:
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(int)]
    if not len(starts):
        raise ValueError(f"{len(flat)} tokens are too few for one window of {length}")
    return torch.from_numpy(np.stack([flat[start : start + length + 1] for start in starts])).long()


def batches(windows: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """The windows in order, ``count`` at a time; the last batch may be smaller."""
    yield from torch.split(windows, count)
