"""The columns behind `RowTree`: per tree row its serial, token, parent, position, and the matrix of ancestors.

Indices here count tree rows from the end of the prefix; -1 stands for the last accepted row. The module knows neither
batches nor verdicts: it stores, looks up, keeps and drops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from flowspec.errors import InvariantViolation
from flowspec.wire.messages import NO_PARENT, DraftTokens

GROWTH: Final = 64
"""Tree rows are allocated in blocks of this many."""

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class RowColumns:
    """Tree rows in order of arrival, a parent before its children, behind an implicit accepted prefix."""

    def __init__(self) -> None:
        self.prefix = 0
        """Rows of the accepted prefix: a chain at positions 0 .. prefix - 1."""
        self.last_accepted: int | None = None
        """Serial of the last row of the prefix."""
        self._count = 0
        self._row_of: dict[int, int] = {}  # serial -> index
        self._allocate(GROWTH)

    def _allocate(self, capacity: int) -> None:
        self._serials = np.zeros(capacity, np.int64)
        self._tokens = np.zeros(capacity, np.int64)
        self._parents = np.zeros(capacity, np.int64)
        self._positions = np.zeros(capacity, np.int64)
        self._matrix = np.zeros((capacity, capacity), np.bool_)  # [i, j]: j is i or an ancestor of i

    # ---- reading; rows are absolute, the prefix counts

    @property
    def rows(self) -> int:
        """Rows in use, those of an open batch included."""
        return self.prefix + self._count

    @property
    def tree_rows(self) -> int:
        return self._count

    @property
    def last_row(self) -> int:
        """Row of the last accepted token, -1 when there is none."""
        return self.prefix - 1

    def find(self, serial: int) -> int | None:
        """Row of a token; None when it is unknown here or lies inside the prefix (its last row is found)."""
        index = self._index(serial)
        return None if index is None or self.prefix + index < 0 else self.prefix + index

    def serial_of(self, row: int) -> int:
        """Serial of a tree row or of the last accepted row."""
        if row == self.last_row and self.last_accepted is not None:
            return self.last_accepted
        return int(self._serials[self._tree_index(row)])

    def token_of(self, row: int) -> int:
        """Token id of a tree row."""
        return int(self._tokens[self._tree_index(row)])

    def position_of(self, row: int) -> int:
        """Depth of a row in the sequence; -1 for the place before the first token."""
        return row if row < self.prefix else int(self._positions[self._tree_index(row)])

    def parent_of(self, row: int) -> int:
        """Row of the parent, -1 for a token that begins the session."""
        if row < self.prefix:
            return row - 1
        above = int(self._parents[self._tree_index(row)])
        return self.last_row if above < 0 else self.prefix + above

    def lineage(self, rows: Iterable[int]) -> list[int]:
        """The given tree rows and their ancestors in the tree, increasing: a parent before its children."""
        indices = [self._tree_index(row) for row in rows]
        if not indices:
            return []
        seen = self._matrix[indices, : self._count].any(axis=0)
        return (np.flatnonzero(seen) + self.prefix).tolist()

    def path_tokens(self, row: int) -> tuple[int, ...]:
        """Token ids from the first tree ancestor of `row` down to `row` itself; empty for the last accepted row."""
        if row == self.last_row:
            return ()
        index = self._tree_index(row)
        return tuple(self._tokens[: index + 1][self._matrix[index, : index + 1]].tolist())

    def child_of(self, row: int, token: int) -> int | None:
        """The tree row that carries `token` right after `row` (a tree row or the last accepted one)."""
        child = self._child(-1 if row == self.last_row else self._tree_index(row), token)
        return None if child is None else self.prefix + child

    def first_child(self, row: int) -> int | None:
        """The tree row that came first of those right after `row` (a tree row or the last accepted one)."""
        parent = -1 if row == self.last_row else self._tree_index(row)
        hits = np.flatnonzero(self._parents[: self._count] == parent)
        return self.prefix + int(hits[0]) if len(hits) else None

    def _child(self, parent: int, token: int) -> int | None:
        count = self._count
        hits = np.flatnonzero((self._parents[:count] == parent) & (self._tokens[:count] == token))
        return int(hits[0]) if len(hits) else None

    def _index(self, serial: int) -> int | None:
        """Index of a tree row; -1 for the last accepted row; None when the serial is not known here."""
        index = self._row_of.get(serial)
        return -1 if index is None and serial == self.last_accepted else index

    def _tree_index(self, row: int) -> int:
        index = row - self.prefix
        if not 0 <= index < self._count:
            raise InvariantViolation(f"row {row} is not a tree row: the tree is [{self.prefix}, {self.rows})")
        return index

    # ---- changing

    def _append(self, draft: DraftTokens) -> None:
        start, count = self._count, len(draft)
        end = start + count
        self._reserve(end)
        matrix, row_of = self._matrix, self._row_of
        root = NO_PARENT if self.last_accepted is None else self.last_accepted
        parents: list[int] = []
        positions: list[int] = []
        matrix[start:end, :end] = False
        matrix[range(start, end), range(start, end)] = True
        for index, (serial, parent) in enumerate(zip(draft.serials, draft.parents, strict=True), start):
            above = row_of.get(parent)
            if above is not None:
                matrix[index, :index] = matrix[above, :index]
                depth = positions[above - start] if above >= start else int(self._positions[above])
                positions.append(depth + 1)
                parents.append(above)
            elif parent == root:
                positions.append(self.prefix)
                parents.append(-1)
            else:
                for appended in draft.serials[: index - start]:
                    del row_of[appended]
                raise InvariantViolation(f"token {serial} was not admitted: its parent {parent} is unknown")
            row_of[serial] = index
        if len(row_of) != end:
            raise InvariantViolation("a token was appended twice")
        self._serials[start:end] = draft.serials
        self._tokens[start:end] = draft.tokens
        self._parents[start:end] = parents
        self._positions[start:end] = positions
        self._count = end

    def _reserve(self, count: int) -> None:
        if count <= len(self._serials):
            return
        used, old = self._count, (self._serials, self._tokens, self._parents, self._positions, self._matrix)
        self._allocate(-(-count // GROWTH) * GROWTH)
        for column, before in zip((self._serials, self._tokens, self._parents, self._positions), old, strict=False):
            column[:used] = before[:used]
        self._matrix[:used, :used] = old[-1][:used, :used]

    def _drop_from(self, start: int) -> None:
        for serial in self._serials[start : self._count].tolist():
            del self._row_of[serial]
        self._count = start

    def _settle(self, staying: IntArray, joined: int, last: int | None) -> None:
        """`joined` rows enter the prefix, which then ends with serial `last`; of the tree, `staying` is what is left.

        The caller must have chosen rows whose paths stay whole: an ancestor stays or joins.
        """
        count, left = self._count, len(staying)
        renamed = np.full(count + 1, -1, np.int64)  # the last slot, found by index -1, stays -1
        renamed[staying] = np.arange(left)
        self._parents[:left] = renamed[self._parents[staying]]
        for column in (self._serials, self._tokens, self._positions):
            column[:left] = column[staying]
        if left:
            self._matrix[:left, :left] = self._matrix[staying][:, staying]
        self._count = left
        self._row_of = {serial: index for index, serial in enumerate(self._serials[:left].tolist())}
        if joined:
            self.prefix += joined
            self.last_accepted = last

    # ---- checking

    def check_integrity(self) -> None:
        """Raise InvariantViolation when columns, index and matrix do not tell the same story. Slow; for tests."""
        count = self._count
        if self._row_of != {serial: index for index, serial in enumerate(self._serials[:count].tolist())}:
            raise InvariantViolation("the index of serials does not match the rows")
        if (self.prefix == 0) != (self.last_accepted is None):
            raise InvariantViolation("a prefix and its last accepted token go together")
        for index in range(count):
            parent = int(self._parents[index])
            if not -1 <= parent < index:
                raise InvariantViolation(f"tree row {index} comes before its parent {parent}")
            expected = self._matrix[parent, :count].copy() if parent >= 0 else np.zeros(count, np.bool_)
            expected[index] = True
            if not np.array_equal(expected, self._matrix[index, :count]):
                raise InvariantViolation(f"the ancestors of tree row {index} are wrong")
            depth = self.prefix + int(expected.sum()) - 1
            if int(self._positions[index]) != depth:
                raise InvariantViolation(f"tree row {index} is at {self._positions[index]}, its depth is {depth}")
