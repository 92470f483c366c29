"""The bookkeeping of cache rows: which draft token lies in which row, who is whose ancestor, who is still alive.

Rows 0 .. prefix-1 are the accepted prefix: a chain, implicit, in no list. Behind it lie the tree rows in order of
arrival, a parent before its children. One bool matrix M over the tree rows (M[i, j]: j is i or an ancestor of i) is the
mask, the path of a row, and the answer to every question about liveness.

Row numbers are absolute: the prefix counts. The module knows no tensors, no messages but the columns of draft tokens,
and no time; verdicts may come late, doubled, out of order or never, and cost rows, not correctness.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flowspec.errors import InvariantViolation
from flowspec.model.columns import BoolArray, IntArray, RowColumns
from flowspec.wire.messages import NO_PARENT, DraftTokens

NO_ROWS: Final[IntArray] = np.empty(0, np.int64)
NO_DRAFT: Final = DraftTokens()


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows that are being computed: those of `revised`, then the new ones, `start <= row < end`."""

    start: int
    count: int
    serials: tuple[int, ...]  # of the new rows
    parents: IntArray  # (count,) row of the parent, -1 for the first token of a session
    positions: IntArray  # (count,)
    revised: IntArray = field(default_factory=lambda: NO_ROWS)
    """Rows from before the batch that are computed again, increasing."""

    @property
    def end(self) -> int:
        """Rows that exist while the batch is open."""
        return self.start + self.count - len(self.revised)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a verdict changed. `kept` are old tree rows counted from the old prefix, increasing; the rest is gone."""

    kept: IntArray  # (kept rows,)
    accepted_tokens: tuple[int, ...]
    """Token ids of the first `len(accepted_tokens)` kept rows: they joined the prefix."""
    dropped: int


class RowTree(RowColumns):
    """Rows of one session at one stage. All calls from one thread, except `note` and reading the counters.

    The order of calls for a segment: `note` (any time), `prune`, `admit`, `begin` (or `revise`), any number of `alive`
    and `mask`, then `commit` or `abort`. Rows never move while a batch is open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next_token: int | None = None
        """The token that the newest applied verdict names after `last_accepted`."""
        self._open: Batch | None = None
        self._lowest = 0  # position of the open batch
        self._lock = threading.Lock()
        self._noted: tuple[int, int] | None = None
        self._judged: tuple[int, int] | None = None
        self._alive = True

    @property
    def open_batch(self) -> Batch | None:
        return self._open

    # ---- growing

    def admit(self, draft: DraftTokens) -> list[int]:
        """Indices of the tokens of `draft` that are new and not known to be dead. Changes nothing.

        Dead: the parent is neither a tree row, nor the last accepted row, nor an admitted token of the same draft; or
        the parent is the last accepted row and another token is known to follow it.
        """
        known, last, following = self._row_of, self.last_accepted, self.next_token
        root = NO_PARENT if last is None else last
        admitted: list[int] = []
        fresh: set[int] = set()
        for index, (serial, parent, token) in enumerate(zip(draft.serials, draft.parents, draft.tokens, strict=True)):
            if serial in known or serial in fresh:
                continue
            if parent in fresh or parent in known or (parent == root and (following is None or token == following)):
                admitted.append(index)
                fresh.add(serial)
        return admitted

    def begin(self, draft: DraftTokens) -> Batch:
        """Append the tokens of `draft`, all of them admitted, as rows that count only after `commit`."""
        return self._begin(draft, NO_ROWS)

    def revise(self, rows: IntArray, draft: DraftTokens = NO_DRAFT) -> Batch:
        """Compute `rows`, which exist, again in their places, and append the tokens of `draft` as `begin` does.

        `rows` are of the prefix or of the tree, increasing; each sees what it saw before, its ancestors and itself.
        What is kept for a row counts from `commit` on; `abort` leaves it as it was.
        """
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.rows and (np.diff(rows) > 0).all()):
            raise InvariantViolation(f"rows to revise must exist and increase: {rows.tolist()} of {self.rows}")
        return self._begin(draft, rows)

    def _begin(self, draft: DraftTokens, revised: IntArray) -> Batch:
        if self._open is not None:
            raise InvariantViolation("a batch is open already")
        count = len(revised) + len(draft)
        if not count:
            raise InvariantViolation("a batch of no tokens")
        start = self._count
        if len(draft):
            self._append(draft)
        above = self._parents[start : self._count]
        parents = np.where(above < 0, self.last_row, above + self.prefix)
        positions = self._positions[start : self._count].copy()
        if len(revised):
            earlier = [self.parent_of(row) for row in revised.tolist()]
            parents = np.concatenate((np.array(earlier, np.int64), parents))
            positions = np.concatenate((self._positions_of(revised), positions))
        self._open = Batch(self.prefix + start, count, draft.serials, parents, positions, revised)
        self._lowest = int(positions.min())
        self._judged, self._alive = None, True
        return self._open

    def _positions_of(self, rows: IntArray) -> IntArray:
        within = np.maximum(rows - self.prefix, 0)
        return np.where(rows < self.prefix, rows, self._positions[within])

    def commit(self, decree: int) -> tuple[int, ...]:
        """Close the batch. Rows with a serial up to `decree` join the prefix; returns their token ids, in order."""
        self._batch()
        self._open = None
        count = self._count
        serials = self._serials[:count]
        if not count or serials[0] > decree:
            return ()
        joined = int(np.count_nonzero(serials <= decree))
        if not self._matrix[joined - 1, :joined].all():
            raise InvariantViolation("tokens accepted by decree are not a chain at the front of the tree")
        tokens = tuple(self._tokens[:joined].tolist())
        self._settle(np.arange(joined, count), joined, int(serials[joined - 1]))
        self.next_token = None
        return tokens

    def abort(self) -> None:
        """Forget the rows of the open batch."""
        batch = self._batch()
        self._open = None
        self._drop_from(batch.start - self.prefix)

    def truncate(self, rows: int) -> None:
        """Forget the newest tree rows, so that `rows` are left, the prefix counted."""
        if self._open is not None or not self.prefix <= rows <= self.rows:
            raise InvariantViolation(f"cannot truncate to {rows} rows: the tree is [{self.prefix}, {self.rows})")
        self._drop_from(rows - self.prefix)

    # ---- verdicts

    def note(self, frontier: int, token: int) -> None:
        """Keep the newest verdict for `alive` and `prune`. Constant time, safe from any thread."""
        with self._lock:
            if self._noted is None or frontier > self._noted[0]:
                self._noted = (frontier, token)

    @property
    def noted(self) -> tuple[int, int] | None:
        """The newest verdict that was noted: (frontier, token)."""
        return self._noted

    def alive(self) -> bool:
        """Whether anything of the open batch can still be accepted, as far as the noted verdict tells."""
        noted = self._noted
        if noted is not self._judged and noted is not None:
            self._judged, self._alive = noted, self._judge(*noted)
        return self._alive

    def _judge(self, frontier_serial: int, token: int) -> bool:
        frontier = self._index(frontier_serial)
        if self._open is None or frontier is None or len(self._open.revised):
            return True
        start, count = self._open.start - self.prefix, self._count
        if frontier >= 0 and self._matrix[frontier, start:count].any():
            return True
        child = self._child(frontier, token)
        return child is not None and bool(self._matrix[start:count, child].any())

    def prune(self, verdict: tuple[int, int] | None = None) -> Pruned | None:
        """Apply the noted verdict, or `verdict`: what lies neither on the way to its frontier nor under its token goes.

        None when no row moves or goes (`next_token` may have become known all the same). A verdict whose frontier is
        unknown here, or inside the prefix, changes nothing. Not while a batch is open.
        """
        if self._open is not None:
            raise InvariantViolation("rows never move while a batch is open")
        noted = verdict or self._noted
        frontier = None if noted is None else self._index(noted[0])
        if noted is None or frontier is None or (frontier < 0 and self.next_token == noted[1]):
            return None
        self.next_token = noted[1]
        count = self._count
        if not count:
            return None
        child = self._child(frontier, noted[1])
        matrix = self._matrix[:count, :count]
        keep = np.zeros(count, np.bool_) if child is None else matrix[:, child].copy()
        joined, last = 0, self.last_accepted
        if frontier >= 0:
            joined, last = int(np.count_nonzero(matrix[frontier])), int(self._serials[frontier])
            keep |= matrix[frontier]
        kept = np.flatnonzero(keep)
        if not joined and len(kept) == count:
            return None
        tokens = tuple(self._tokens[kept[:joined]].tolist())
        self._settle(kept[joined:], joined, last)
        return Pruned(kept, tokens, count - len(kept))

    # ---- masks

    def unmasked(self, window: int | None = None) -> bool:
        """Whether the open batch is one row that attends to every row from `first_row(window)` on."""
        batch = self._batch()
        if batch.count != 1:
            return False
        row = int(batch.revised[0]) if len(batch.revised) else batch.start
        if row < self.prefix:
            if row < self.rows - 1:
                return False
        elif not self._matrix[row - self.prefix, : self._count].all():
            return False
        return window is None or self._lowest - self.first_row(window) < window

    def first_row(self, window: int | None) -> int:
        """The row before which the open batch attends to none. Those of the tree count as attended to, all of them."""
        self._batch()
        return 0 if window is None else max(0, min(self.prefix, self._lowest - window + 1))

    def mask(self, window: int | None = None) -> BoolArray:
        """True where a row of the open batch attends: (count, rows from `first_row(window)` on).

        A window is counted over positions.
        """
        batch, first = self._batch(), self.first_row(window)
        start, prefix, revised = batch.start - self.prefix, self.prefix, batch.revised
        mask = np.empty((batch.count, self.rows - first), np.bool_)
        chain, tree = mask[:, : prefix - first], mask[:, prefix - first :]
        chain[:] = True
        tree[len(revised) :] = self._matrix[start : self._count, : self._count]
        if len(revised):
            inside = int(np.searchsorted(revised, prefix))
            chain[:inside] = np.arange(first, prefix) <= revised[:inside, None]
            tree[:inside] = False
            tree[inside : len(revised)] = self._matrix[revised[inside:] - prefix, : self._count]
        if window is not None and int(batch.positions.max()) - first >= window:
            positions = np.concatenate((np.arange(first, prefix), self._positions[: self._count]))
            mask &= batch.positions[:, None] - positions < window
        return mask

    def _batch(self) -> Batch:
        if self._open is None:
            raise InvariantViolation("no batch is open")
        return self._open
