"""Keys and values of one session at one stage, laid out by `RowTree`.

Buffers grow by blocks up to the admitted limit. Rows move only after a prune, and then only tree rows; the accepted
prefix never moves, but the buffer of a layer with a window drops, when it grows, what no row to come can attend to. To
the layers the cache is `past_key_values`: they call `update` and get exactly the rows there are, or those of their
window. It knows neither masks nor what a layer computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from flowspec.errors import InvariantViolation, LimitExceeded
from flowspec.model.columns import IntArray
from flowspec.model.rows import NO_DRAFT, Batch, Pruned, RowTree
from flowspec.wire.messages import DraftTokens

BLOCK_ROWS: Final = 256
"""Buffers grow by this many rows."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one row holds on a stage: `layers` times keys and values of (kv_heads, head_dim)."""

    first_layer: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    windows: tuple[int | None, ...] = ()
    """How many positions each layer looks back, itself included, None for all; empty where no layer has a window."""

    @property
    def row_bytes(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


class TreeCache(RowTree):
    """K and V beside the bookkeeping, and at the tail a hidden state per tree row and for the last accepted row."""

    def __init__(self, shape: CacheShape, row_limit: int) -> None:
        super().__init__()
        self.shape = shape
        self.row_limit = row_limit
        self.row_bytes = shape.row_bytes
        self._capacity = 0
        self._windows = shape.windows or (None,) * shape.layers
        self._buffers: list[torch.Tensor] = []  # per layer (2, kv_heads, capacity - first, head_dim)
        self._firsts = [0] * shape.layers  # per layer the first row that its buffer holds
        self._side: torch.Tensor | None = None  # (1 + tree rows, hidden); slot 0 is the last accepted row
        self._freed = False
        self._targets: torch.Tensor | None = None  # rows of the open batch, where they are not one run
        self._overwritten: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
        """What `abort` puts back: (tensor, dimension, indices along it, what was there)."""

    @property
    def bytes_held(self) -> int:
        side = 0 if self._side is None else self._side.nbytes
        return sum(buffer.nbytes for buffer in self._buffers) + side

    def free(self) -> None:
        """Give the buffers back; the cache cannot be used any more."""
        self._freed = True
        self._buffers = []
        self._side = None
        self._capacity = 0

    # ---- batches

    def begin(self, draft: DraftTokens) -> Batch:
        """As in RowTree. LimitExceeded when the rows would be more than the session was admitted with."""
        self._make_room(len(draft))
        return super().begin(draft)

    def revise(self, rows: IntArray, draft: DraftTokens = NO_DRAFT) -> Batch:
        """As in RowTree, with the limit of `begin`: `update` and `store` overwrite what the rows held.

        Not for rows of the prefix where a layer has a window: what they attend to may be gone.
        """
        if len(rows) and rows[0] < self.prefix and any(self._windows):
            raise InvariantViolation(f"row {rows[0]} of the prefix cannot be computed again under a window")
        self._make_room(len(draft))
        batch = super().revise(rows, draft)
        if len(rows):
            targets = np.concatenate((rows, np.arange(batch.start, batch.end)))
            self._targets = torch.from_numpy(targets).to(self.shape.device)
        return batch

    def _make_room(self, count: int) -> None:
        if self._freed:
            raise InvariantViolation("the cache was freed")
        needed = self.rows + count
        if needed > self.row_limit:
            raise LimitExceeded(
                "the cache rows of a session",
                needed,
                self.row_limit,
                hint="ask for fewer tokens, or raise limits.context or limits.live_tokens in the topology",
            )
        if needed > self._capacity:
            self._grow(needed)

    def _grow(self, needed: int) -> None:
        capacity = min(self.row_limit, -(-needed // BLOCK_ROWS) * BLOCK_ROWS)
        shape, used = self.shape, self.rows
        # One layer at a time, so that only one layer is held twice.
        for index, window in enumerate(self._windows):
            # Rows to come are at the positions behind the prefix, so what is before their window is of no use.
            first = 0 if window is None else max(0, self.prefix - window + 1)
            size = (2, shape.kv_heads, capacity - first, shape.head_dim)
            new = torch.empty(size, dtype=shape.dtype, device=shape.device)
            if self._capacity:
                new[:, :, : used - first] = self._rows(index, first, used)
                self._buffers[index] = new
            else:
                self._buffers.append(new)
            self._firsts[index] = first
        self._capacity = capacity

    def _rows(self, index: int, start: int, end: int) -> torch.Tensor:
        """Rows [start, end) of the layer at `index`, (2, kv_heads, rows, head_dim)."""
        first = self._firsts[index]
        return self._buffers[index][:, :, start - first : end - first]

    def commit(self, decree: int) -> tuple[int, ...]:
        side, before = self._side, self._count
        self._targets, self._overwritten = None, []
        accepted = super().commit(decree)
        if side is not None and accepted:
            joined = len(accepted)
            side[: before - joined + 1] = side[joined : before + 1].clone()
        return accepted

    def abort(self) -> None:
        """As in RowTree; revised rows get back what they held."""
        super().abort()
        for tensor, dimension, indices, held in reversed(self._overwritten):
            tensor.index_copy_(dimension, indices, held)
        self._targets, self._overwritten = None, []

    def _overwrite(self, tensor: torch.Tensor, dimension: int, indices: torch.Tensor) -> None:
        """Remember what `tensor` holds at `indices`, until the batch is closed."""
        self._overwritten.append((tensor, dimension, indices, tensor.index_select(dimension, indices)))

    def prune(self, verdict: tuple[int, int] | None = None) -> Pruned | None:
        base = self.prefix
        pruned = super().prune(verdict)
        if pruned is not None:
            self._compact(base, pruned)
        return pruned

    def _compact(self, base: int, pruned: Pruned) -> None:
        kept = pruned.kept
        count = len(kept)
        joined = len(pruned.accepted_tokens)
        if self._side is not None:
            slots = [int(kept[joined - 1]) + 1 if joined else 0, *(kept[joined:] + 1).tolist()]
            if slots != list(range(len(slots))):
                self._side[: len(slots)] = self._side[torch.tensor(slots, device=self._side.device)]
        # Rows whose number does not change stay where they are.
        still = int((kept == range(count)).argmin()) if count and kept[-1] != count - 1 else count
        if still == count:
            return
        moved = torch.from_numpy(kept[still:]).to(self.shape.device)
        for index in range(len(self._buffers)):
            tree = self._rows(index, base, self._capacity)
            tree[:, :, still:count] = tree.index_select(2, moved)

    # ---- for the layers

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_index: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (1, kv_heads, q, head_dim) of the open batch; returns all rows' (1, kv_heads, rows, head_dim).

        For a layer with a window these are the rows from `first_row` on.
        """
        batch = self._open
        if batch is None:
            raise InvariantViolation("a layer stored keys and values outside a batch")
        index = layer_index - self.shape.first_layer
        buffer, held, window = self._buffers[index], self._firsts[index], self._windows[index]
        # In as few operations as can be: a layer of a small model takes no longer than twenty of them.
        start, end = batch.start - held, batch.end - held
        if self._targets is None:
            buffer[0, :, start:end] = keys[0]
            buffer[1, :, start:end] = values[0]
        else:
            targets = self._targets - held
            self._overwrite(buffer, 2, targets[: len(batch.revised)])
            buffer[0].index_copy_(1, targets, keys[0])
            buffer[1].index_copy_(1, targets, values[0])
        seen = 0 if window is None else self.first_row(window) - held
        return buffer[0:1, :, seen:end], buffer[1:2, :, seen:end]

    def get_seq_length(self, layer_index: int = 0) -> int:
        """Rows before the open batch."""
        return self.rows if self._open is None else self._open.start

    # ---- side column

    def store(self, hidden: torch.Tensor) -> None:
        """Keep a vector for each row of the open batch, (count, size); call before `commit`.

        There is no place for those of revised rows before the last accepted one: they are dropped.
        """
        batch = self._open
        if batch is None or hidden.shape[0] != batch.count:
            raise InvariantViolation("one vector per row of the open batch is needed")
        slots = 1 + self._count
        if self._side is None or len(self._side) < slots:
            capacity = -(-slots // BLOCK_ROWS) * BLOCK_ROWS
            grown = torch.zeros(capacity, hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
            if self._side is not None:
                grown[: len(self._side)] = self._side
            self._side = grown
        revised = len(batch.revised)
        if revised:
            slots_again = batch.revised - self.last_row
            passed = int(np.searchsorted(slots_again, 0))
            again = torch.from_numpy(slots_again[passed:]).to(self._side.device)
            self._overwrite(self._side, 0, again)
            self._side.index_copy_(0, again, hidden[passed:revised])
        start = batch.start - self.prefix + 1
        self._side[start : start + batch.count - revised] = hidden[revised:]

    def side_of(self, row: int) -> torch.Tensor:
        """The vector of a tree row or of the last accepted row, (size,)."""
        if self._side is None:
            raise InvariantViolation("no vector was stored")
        slot = 0 if row == self.last_row else 1 + self._tree_index(row)
        return self._side[slot]

    def sides_of(self, rows: IntArray) -> torch.Tensor:
        """The vectors of rows that are in the tree or the last accepted one, (n, size)."""
        slots = rows - self.last_row
        if self._side is None or (len(slots) and not 0 <= slots.min() <= slots.max() <= self._count):
            raise InvariantViolation("no vector was stored for one of the rows")
        return self._side.index_select(0, torch.from_numpy(slots).to(self._side.device))
