"""The bookkeeping of rows against a model that keeps one dict of parents and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flowspec.errors import InvariantViolation, LimitExceeded
from flowspec.model.cache import CacheShape, TreeCache
from flowspec.model.rows import RowTree
from flowspec.wire.messages import NO_PARENT, DraftTokens
from tests.model.running import NO_DECREE, chain

SHAPE = CacheShape(3, 2, 1, 1, torch.float64, torch.device("cpu"))


@dataclass
class Known:
    parent: int
    token: int


class NaiveRows:
    """What a stage must hold, said with parents and sets: slow and plain."""

    def __init__(self) -> None:
        self.all: dict[int, Known] = {}
        self.accepted: list[int] = []
        self.tree: list[int] = []
        self.following: int | None = None

    @property
    def last(self) -> int:
        return self.accepted[-1] if self.accepted else NO_PARENT

    def path(self, serial: int) -> list[int]:
        """Tree ancestors of `serial`, the highest first, and itself."""
        path: list[int] = []
        while serial in self.tree:
            path.insert(0, serial)
            serial = self.all[serial].parent
        return path

    def admit(self, draft: DraftTokens) -> list[int]:
        admitted: list[int] = []
        alive = set(self.tree)
        for index, (serial, parent, token) in enumerate(zip(draft.serials, draft.parents, draft.tokens, strict=True)):
            dead = self.following not in (None, token) if parent == self.last else parent not in alive
            if not dead and serial not in alive:
                admitted.append(index)
                alive.add(serial)
        return admitted

    def living(self, frontier: int, token: int) -> set[int] | None:
        """Serials that a verdict leaves alive, None when the verdict means nothing here."""
        if frontier not in self.tree and frontier != self.last:
            return None
        kept = set(self.path(frontier))
        for serial in self.tree:
            path = [frontier, *self.path(serial)] if frontier == self.last else self.path(serial)
            if frontier in path[:-1] and self.all[path[path.index(frontier) + 1]].token == token:
                kept.add(serial)
        return kept

    def apply(self, frontier: int, token: int) -> None:
        living = self.living(frontier, token)
        if living is None:
            return
        self.following = token
        joined = self.path(frontier)
        self.accepted += joined
        self.tree = [serial for serial in self.tree if serial in living and serial not in joined]


class RowsAgainstParents(RuleBasedStateMachine):
    """Segments, verdicts in any order, duplicates and strangers; after each step both tell the same.

    Each row's keys hold its serial, so that a row that moved wrongly shows, and a fraction that counts how often it was
    revised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = TreeCache(SHAPE, 2000)
        self.naive = NaiveRows()
        self.serial = 0
        self.sent: list[tuple[int, int, int]] = []  # (serial, parent, token) of all that was ever sent
        self.verdicts: list[tuple[int, int]] = []
        self.newest: tuple[int, int] | None = None
        self.revisions: dict[int, int] = {}

    def held(self, serial: int) -> float:
        """What a row's keys and vector hold."""
        return serial + self.revisions.get(serial, 0) / 1024

    @initialize(length=st.integers(1, 12), chunk=st.integers(1, 12))
    def prompt(self, length: int, chunk: int) -> None:
        for start in range(0, length, chunk):
            part = chain([1] * min(chunk, length - start), start)
            self.compute(part, decree=length - 1)
        self.serial = length

    @rule(data=st.data(), size=st.integers(1, 9))
    def segment(self, data: st.DataObject, size: int) -> None:
        """New tokens under any token that ever was, mixed with tokens sent before."""
        columns: list[tuple[int, int, int]] = []
        for _ in range(size):
            if self.sent and data.draw(st.booleans() if len(columns) % 4 == 3 else st.just(False)):
                columns.append(data.draw(st.sampled_from(self.sent)))
                continue
            recent = [self.naive.last, *self.naive.tree[-12:], *(column[0] for column in columns)]
            parent = data.draw(st.sampled_from(recent) if self.serial % 5 else st.integers(-1, self.serial + 3))
            used = {token for _, above, token in (*self.sent, *columns) if above == parent}
            free = [token for token in range(6) if token not in used]
            if not free:
                continue
            columns.append((self.serial, parent, data.draw(st.sampled_from(free))))
            self.serial += 1
        columns.sort()
        if columns:
            self.sent += [column for column in columns if column not in self.sent]
            serials, parents, tokens = zip(*columns, strict=True)
            self.compute(DraftTokens(serials, parents, tokens), decree=NO_DECREE, data=data)

    def compute(self, draft: DraftTokens, decree: int, data: st.DataObject | None = None) -> None:
        admitted = self.rows.admit(draft)
        assert admitted == self.naive.admit(draft)
        if not admitted:
            return
        living = draft.select(admitted)
        for serial in living.serials:  # it may have had a row before, and lost it
            self.revisions.pop(serial, None)
        batch = self.rows.begin(living)
        assert batch.positions.tolist() == [self.depth(serial, living) for serial in living.serials]
        self.rows.store(torch.tensor(living.serials, dtype=torch.float64)[:, None])
        keys = torch.tensor(living.serials, dtype=torch.float64)[None, None, :, None]
        for layer in (3, 4):
            stored, values = self.rows.update(keys, -keys, layer)
            assert torch.equal(stored, -values)
            assert stored.shape == (1, 1, batch.end, 1)
        self.check_masks(living)
        for serial, parent, token in zip(living.serials, living.parents, living.tokens, strict=True):
            self.naive.all[serial] = Known(parent, token)
        self.naive.tree += living.serials
        if data is not None and self.newest is not None:
            expected = self.naive.living(*self.newest)
            assert self.rows.alive() == (expected is None or bool(expected & set(living.serials)))
        if data is not None and data.draw(st.integers(0, 4)) == 0:
            self.rows.abort()
            self.naive.tree = self.naive.tree[: -len(living)]
            return
        joined = self.rows.commit(decree)
        assert joined == tuple(
            token for serial, token in zip(living.serials, living.tokens, strict=True) if serial <= decree
        )
        if joined:
            self.naive.accepted += living.serials[: len(joined)]
            self.naive.tree = self.naive.tree[len(joined) :]

    def depth(self, serial: int, living: DraftTokens) -> int:
        depth = len(self.naive.accepted)
        parent = living.parents[living.serials.index(serial)]
        while parent != self.naive.last:
            inside = parent in living.serials
            parent = living.parents[living.serials.index(parent)] if inside else self.naive.all[parent].parent
            depth += 1
        return depth

    def check_masks(self, living: DraftTokens) -> None:
        rows = [*self.naive.tree, *living.serials]
        parents = {s: known.parent for s, known in self.naive.all.items()} | dict(
            zip(living.serials, living.parents, strict=True)
        )
        prefix = len(self.naive.accepted)
        for window in (None, 1, 3):
            mask, first = self.rows.mask(window), self.rows.first_row(window)
            assert first <= prefix
            assert mask.shape == (len(living), prefix + len(rows) - first)
            for index, serial in enumerate(living.serials):
                path = [serial]
                while path[-1] != self.naive.last:
                    path.append(parents[path[-1]])
                seen = {prefix + rows.index(s) for s in path[:-1]} | set(range(prefix))
                if window is not None:
                    depth = prefix + len(path) - 2
                    near = {prefix + rows.index(s): depth - i for i, s in enumerate(path[:-1])}
                    seen = {row for row in seen if depth - near.get(row, row) < window}
                assert set((np.flatnonzero(mask[index]) + first).tolist()) == seen
            assert self.rows.unmasked(window) == (len(living) == 1 and bool(mask.all()))

    @rule(data=st.data(), new=st.integers(0, 2))
    def revise(self, data: st.DataObject, new: int) -> None:
        """Any rows again, in the prefix and in the tree, and new ones in the same batch; committed or aborted."""
        here = [*self.naive.accepted, *self.naive.tree]
        rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(here), max_size=len(here))))
        parent = data.draw(st.sampled_from([*self.naive.tree, self.naive.last]))
        draft = chain([100 + self.serial] * new, self.serial, parent) if new else DraftTokens()
        draft = draft.select(self.rows.admit(draft))
        if not len(rows) + len(draft):
            return
        self.serial += new
        again = [here[row] for row in rows]
        batch = self.rows.revise(rows, draft)
        for serial, above, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            self.naive.all[serial] = Known(above, token)
        for serial in again:
            self.revisions[serial] = self.revisions.get(serial, 0) + 1
        written = torch.tensor([*map(self.held, again), *draft.serials], dtype=torch.float64)
        self.rows.store(written[:, None])
        for layer in (3, 4):
            keys, _ = self.rows.update(written[None, None, :, None], -written[None, None, :, None], layer)
            assert keys[0, 0, :, 0].tolist() == [*map(self.held, here), *draft.serials]
        prefix = len(self.naive.accepted)
        self.naive.tree += draft.serials
        every = [*here, *draft.serials]
        paths = [
            [*self.naive.accepted[: row + 1]] if row < prefix else [*self.naive.accepted, *self.naive.path(every[row])]
            for row in (*rows.tolist(), *range(len(here), len(every)))
        ]
        assert batch.positions.tolist() == [len(path) - 1 for path in paths]
        assert batch.parents.tolist() == [every.index(path[-2]) if len(path) > 1 else -1 for path in paths]
        for window in (None, 1, 3):
            mask, first = self.rows.mask(window), self.rows.first_row(window)
            assert mask.shape == (batch.count, batch.end - first)
            for seen, path in zip(mask, paths, strict=True):
                near = path if window is None else path[-window:]
                assert [every[row] for row in np.flatnonzero(seen) + first] == sorted(near, key=every.index)
            assert self.rows.unmasked(window) == (batch.count == 1 and bool(mask.all()))
        if data.draw(st.booleans()):
            assert self.rows.commit(NO_DECREE) == ()
            return
        self.rows.abort()
        self.naive.tree = self.naive.tree[: len(self.naive.tree) - len(draft)]
        for serial in again:
            self.revisions[serial] -= 1

    @rule(data=st.data())
    def hear_a_verdict(self, data: st.DataObject) -> None:
        """A verdict on any token that is here, or an old one again, or one on a token that never was."""
        choices = [*self.naive.tree, self.naive.last, self.serial + 7]
        old = data.draw(st.booleans()) if self.verdicts else False
        verdict = (
            data.draw(st.sampled_from(self.verdicts))
            if old
            else (data.draw(st.sampled_from(choices)), data.draw(st.integers(0, 5)))
        )
        if verdict[0] > self.serial and data.draw(st.integers(0, 9)):
            return
        if not any(frontier == verdict[0] for frontier, _ in self.verdicts):
            self.verdicts.append(verdict)
        elif verdict not in self.verdicts:
            return  # a token is sampled once per frontier
        self.rows.note(*verdict)
        if self.newest is None or verdict[0] > self.newest[0]:
            self.newest = verdict

    @rule()
    def prune(self) -> None:
        before = list(self.naive.tree)
        accepted = len(self.naive.accepted)
        if self.newest is not None:
            self.naive.apply(*self.newest)
        pruned = self.rows.prune()
        after = [*self.naive.accepted[accepted:], *self.naive.tree]
        if pruned is None:
            assert before == after
            return
        assert [before[index] for index in pruned.kept] == after
        assert pruned.dropped == len(before) - len(after)
        assert pruned.accepted_tokens == tuple(self.naive.all[s].token for s in self.naive.accepted[accepted:])

    @precondition(lambda self: self.naive.tree)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        left = data.draw(st.integers(max(0, len(self.naive.tree) - 3), len(self.naive.tree)))
        self.naive.tree = self.naive.tree[:left]
        self.rows.truncate(self.rows.prefix + left)

    @invariant()
    def both_hold_the_same(self) -> None:
        rows, naive = self.rows, self.naive
        rows.check_integrity()
        prefix = len(naive.accepted)
        assert (rows.prefix, rows.rows, rows.tree_rows) == (prefix, prefix + len(naive.tree), len(naive.tree))
        assert rows.next_token == naive.following
        if not prefix:
            return
        assert rows.last_accepted == naive.last
        keys = rows._buffers[1][0, 0, : rows.rows, 0].tolist()
        assert keys == [self.held(serial) for serial in (*naive.accepted, *naive.tree)]
        assert rows.side_of(rows.last_row).tolist() == [self.held(naive.last)]
        outputs = rows.sides_of(np.arange(rows.last_row, rows.rows))
        assert outputs[:, 0].tolist() == [self.held(serial) for serial in (naive.last, *naive.tree)]
        for index, serial in enumerate(naive.tree):
            row = prefix + index
            assert (rows.find(serial), rows.serial_of(row)) == (row, serial)
            assert rows.side_of(row).tolist() == [self.held(serial)]
            path = naive.path(serial)
            assert rows.lineage([row]) == [prefix + naive.tree.index(ancestor) for ancestor in path]
            assert rows.path_tokens(row) == tuple(naive.all[s].token for s in path)
            assert rows.position_of(row) == prefix + len(path) - 1
            parent = rows.find(naive.all[serial].parent)
            assert parent is not None
            assert rows.parent_of(row) == parent
            assert rows.child_of(parent, naive.all[serial].token) == row


RowsAgainstParents.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestRowsAgainstParents = RowsAgainstParents.TestCase


def tree_of_three() -> RowTree:
    """Prefix 0-1-2, then 3 and 4 under 2, and 5 under 3; the token is ten times the serial."""
    rows = RowTree()
    rows.begin(chain([0, 10, 20]))
    rows.commit(2)
    rows.begin(DraftTokens((3, 4, 5), (2, 2, 3), (30, 40, 50)))
    rows.commit(2)
    return rows


def test_a_verdict_moves_the_prefix_and_keeps_only_what_follows_its_token() -> None:
    rows = tree_of_three()
    rows.note(3, 50)
    pruned = rows.prune()
    assert pruned is not None
    assert (pruned.kept.tolist(), pruned.accepted_tokens, pruned.dropped) == ([0, 2], (30,), 1)
    assert (rows.prefix, rows.last_accepted, rows.next_token, rows.find(5)) == (4, 3, 50, 4)


def test_a_verdict_whose_token_is_not_here_leaves_an_empty_tree_and_admits_only_that_token() -> None:
    rows = tree_of_three()
    rows.note(5, 77)
    assert rows.prune() is not None
    assert (rows.prefix, rows.tree_rows) == (5, 0)
    assert rows.admit(DraftTokens((8, 9, 10), (5, 5, 9), (1, 77, 2))) == [1, 2]


def test_the_same_verdict_twice_changes_nothing_the_second_time() -> None:
    rows = tree_of_three()
    rows.note(2, 30)
    assert rows.prune() is not None
    rows.note(2, 30)
    assert rows.prune() is None
    assert rows.next_token == 30


def test_an_older_verdict_is_ignored_and_an_unknown_one_does_nothing() -> None:
    rows = tree_of_three()
    rows.note(9, 1)
    rows.note(3, 50)
    assert rows.prune() is None
    assert rows.tree_rows == 3
    assert rows.next_token is None


def test_a_batch_that_a_verdict_kills_is_known_to_be_dead_before_it_is_done() -> None:
    rows = tree_of_three()
    rows.begin(DraftTokens((6, 7), (4, 6), (60, 70)))
    assert rows.alive()
    rows.note(2, 40)
    assert rows.alive()
    rows.note(3, 50)
    assert not rows.alive()
    rows.abort()
    assert rows.prune() is not None
    assert rows.rows == 5


def test_drafts_may_follow_the_prompt_in_one_batch_before_any_verdict() -> None:
    rows = RowTree()
    rows.begin(DraftTokens((0, 1, 2, 3), (NO_PARENT, 0, 1, 1), (5, 6, 7, 8)))
    assert rows.commit(1) == (5, 6)
    assert (rows.prefix, rows.last_accepted, rows.tree_rows) == (2, 1, 2)
    assert rows.child_of(rows.last_row, 8) == 3


def test_a_second_beginning_is_refused_once_there_is_one() -> None:
    rows = tree_of_three()
    assert rows.admit(DraftTokens((20,), (NO_PARENT,), (1,))) == []
    assert RowTree().admit(DraftTokens((20,), (NO_PARENT,), (1,))) == [0]


def test_misuse_is_a_defect_and_says_so() -> None:
    rows = tree_of_three()
    for call in (rows.abort, lambda: rows.commit(0), rows.mask, rows.unmasked):
        with pytest.raises(InvariantViolation, match="no batch is open"):
            call()
    with pytest.raises(InvariantViolation, match="its parent 99 is unknown"):
        rows.begin(DraftTokens((6, 7), (5, 99), (1, 2)))
    rows.check_integrity()
    with pytest.raises(InvariantViolation, match="no tokens"):
        rows.begin(DraftTokens())
    rows.begin(DraftTokens((6,), (5,), (1,)))
    for call in (rows.prune, lambda: rows.begin(DraftTokens((7,), (6,), (1,))), lambda: rows.truncate(3)):
        with pytest.raises(InvariantViolation):
            call()
    rows.abort()
    with pytest.raises(InvariantViolation, match="not a tree row"):
        rows.token_of(2)
    with pytest.raises(InvariantViolation, match="cannot truncate"):
        rows.truncate(2)


def test_rows_to_revise_must_exist_and_increase() -> None:
    rows = tree_of_three()
    for wrong in ([2, 1], [1, 1], [-1], [6]):
        with pytest.raises(InvariantViolation, match="must exist and increase"):
            rows.revise(np.array(wrong))
    with pytest.raises(InvariantViolation, match="no tokens"):
        rows.revise(np.array([], np.int64))
    rows.revise(np.array([1, 5]))
    with pytest.raises(InvariantViolation, match="open already"):
        rows.revise(np.array([1]))
    rows.note(3, 99)
    assert rows.alive()
    rows.abort()
    rows.check_integrity()
    assert (rows.parent_of(0), rows.parent_of(2), rows.lineage([])) == (-1, 1, [])


def test_the_only_rows_there_are_can_be_revised_and_a_decree_still_makes_them_the_prefix() -> None:
    rows = TreeCache(SHAPE, 8)
    rows.begin(chain([0, 10, 20]))
    rows.commit(2)
    rows.revise(np.array([0, 1, 2]))
    assert rows.commit(2) == ()
    rows.revise(np.array([2]), DraftTokens((3, 4), (2, 3), (30, 40)))
    assert rows.commit(3) == (30,)
    assert (rows.prefix, rows.tree_rows) == (4, 1)
    with pytest.raises(LimitExceeded):
        rows.revise(np.array([0]), chain([1] * 4, 5))
    rows.free()
    with pytest.raises(InvariantViolation, match="freed"):
        rows.revise(np.array([0]))


def test_rows_that_a_window_may_have_left_are_not_computed_again() -> None:
    rows = TreeCache(replace(SHAPE, windows=(None, 2)), 8)
    rows.begin(chain([0, 10, 20]))
    rows.commit(1)
    with pytest.raises(InvariantViolation, match="row 1 of the prefix"):
        rows.revise(np.array([1]))
    rows.revise(np.array([2]))
    rows.abort()


def test_a_decree_that_is_not_a_chain_is_refused() -> None:
    rows = tree_of_three()
    rows.begin(DraftTokens((6,), (5,), (60,)))
    with pytest.raises(InvariantViolation, match="not a chain"):
        rows.commit(6)


@pytest.mark.parametrize("damage", ["index", "parent", "ancestors", "position"])
def test_damaged_bookkeeping_is_noticed(damage: str) -> None:
    rows = tree_of_three()
    rows.check_integrity()
    match damage:
        case "index":
            rows._row_of[99] = 0
        case "parent":
            rows._parents[0] = 2
        case "ancestors":
            rows._matrix[2, 1] = True
        case _:
            rows._positions[1] += 1
    with pytest.raises(InvariantViolation):
        rows.check_integrity()
