"""One session's rows in a head's cache: which tokens have one, what it was made from, which are to be made or remade.

Row convention of EAGLE (see `head`): the row of the token at position i takes the state of position i - 1, and has
cache position i - 1. That state is the target's, once its features are there, whatever the row is: tokens that are not
accepted at that position are dead, so nothing is lost where it does not fit them. Until then it is the output of the
parent's row. A row that was made from true states, as were its ancestors', is final.

What a step computes is the least that its answer needs, in one forward, or as many as there are levels of new tokens
that wait for one another's outputs. It knows no vocabulary scores and no sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from flowspec.drafting.causal_lm import PREFILL_TOKENS
from flowspec.drafting.head import DraftHead
from flowspec.drafting.true_states import TrueStates
from flowspec.model.columns import IntArray
from flowspec.model.rows import NO_DRAFT, Batch
from flowspec.model.sampling import TokenHistory
from flowspec.wire.messages import NO_PARENT, DraftTokens

DEEPEST: Final = 8
"""Most new tokens above one another that a step reads without true states: each takes a forward of its own."""
EARLY: Final = 16
"""Prompt tokens that are worth a forward of their own as their features come; fewer go with the next step."""


class HeadRows:
    """Rows of one session in one epoch. Positions are those of the cache, unless said otherwise."""

    def __init__(self, head: DraftHead, row_limit: int, history: TokenHistory | None = None) -> None:
        self.cache = head.new_cache(row_limit)
        self.states = TrueStates(row_limit)
        self.history = history
        """Gets all accepted tokens, if there is one."""
        self._head = head
        self._decree = NO_PARENT
        self._prompt: list[int] = []  # token ids by serial, as far as they were given
        self._waiting = NO_DRAFT  # other tokens that were given and have no row
        self._settled = 0  # rows of the prefix that are final
        self._unsettled: list[tuple[int, bool]] = []  # (token id, from a true state) of the rest of the prefix
        self._clock = 0  # counts forwards
        self._made: IntArray = np.empty(0, np.int64)  # per tree row: the forward that computed it last
        self._read: IntArray = np.empty(0, np.int64)  # per tree row: the one that had made what it read of its parent
        self._true = np.empty(0, np.bool_)  # per tree row: from a true state
        self._last_made = 0  # as `_made`, of the last accepted row

    @property
    def waiting(self) -> int:
        """Tokens that were given and have no row."""
        return max(0, len(self._prompt) - 1 - self.cache.prefix) + len(self._waiting)

    def outputs(self, rows: list[int]) -> torch.Tensor:
        """Output states (n, hidden) of rows that are in the tree or the last accepted one."""
        return self.cache.sides_of(np.array(rows, np.int64))

    # ---- hearing

    def follow(self, frontier: int, token: int) -> None:
        """Drop what contradicts a verdict."""
        self.cache.note(frontier, token)
        pruned = self.cache.prune()
        if pruned is not None:
            kept = pruned.kept
            self._made, self._read, self._true = self._made[kept], self._read[kept], self._true[kept]
            self._join(pruned.accepted_tokens)

    def give(self, draft: DraftTokens, decree: int) -> None:
        """Take tokens, those up to `decree` as a chain that is accepted; tokens that were given before are ignored."""
        self._decree = decree
        new: list[int] = []
        for index, (serial, parent, token) in enumerate(zip(draft.serials, draft.parents, draft.tokens, strict=True)):
            if serial > decree:
                if parent >= decree:  # the prompt is a chain: what hangs on its middle is dead
                    new.append(index)
            elif serial == len(self._prompt):
                self._prompt.append(token)
                if serial == 0 and self.history is not None:
                    self.history.add((token,))
        room = self.cache.row_limit - len(self._waiting)
        self._waiting = self._waiting.followed_by(rooted(draft.select(new[: max(0, room)])))

    def learn(self, first: int, features: torch.Tensor) -> None:
        """Take the target's features (k, features) of the accepted tokens at sequence positions from `first` on.

        Those behind a gap, and those that are known, are ignored. Prompt tokens whose turn it is are read at once.
        """
        features = features[self.states.news(first, len(features))]
        if not len(features):
            return
        self.states.extend(self._head.project(features.to(self._head.device, self._head.dtype)))
        if min(self._decree, len(self._prompt) - 1, self.states.end) - self.cache.prefix >= EARLY:
            self.advance(())

    # ---- choosing

    def advance(self, expand: tuple[int, ...]) -> None:
        """Make and remake rows, so that those of `expand` are as good as one forward makes them. Where a token of
        `expand` still has no row afterwards, it is dead, or nothing is known to make it from.

        Where its parent is remade as well, a row reads the parent's output of before, and is remade when it is asked
        for again: a forward for each level would make it a little better at once, and the step twice as long.
        """
        end = self.states.end
        new, positions = self._new(expand)
        level_of: dict[int, int] = {}
        steps: dict[int, list[int]] = {0: []}
        for index, (serial, parent) in enumerate(zip(new.serials, new.parents, strict=True)):
            above = level_of.get(parent) if positions[index] >= end else None
            level = level_of[serial] = 0 if above is None else above + 1
            steps.setdefault(level, []).append(index)
        rows = self._outdated(expand, new)
        for _, indices in sorted(steps.items()):
            for part in pieces(rows, new.select(indices)):
                self._compute(*part)
            rows = np.empty(0, np.int64)
        if len(self._waiting) and len(new):
            left = [index for index, serial in enumerate(self._waiting.serials) if serial not in level_of]
            self._waiting = self._waiting.select(left)

    def _new(self, expand: tuple[int, ...]) -> tuple[DraftTokens, list[int]]:
        """Tokens that get a row now, with their positions: of the prompt those whose state is true, and what lies on
        the way to a token of `expand` if that can be reached."""
        cache, end = self.cache, self.states.end
        found, whole = self._candidates()
        if not len(found):
            return NO_DRAFT, []
        found = found.select(cache.admit(found))
        if whole:
            self._waiting = found.select([i for i, serial in enumerate(found.serials) if serial > self._decree])
        position: dict[int, int] = {}
        ahead: dict[int, int] = {}  # forwards from true states or a row that there is; absent where out of reach
        for serial, parent in zip(found.serials, found.parents, strict=True):
            inside = parent in position
            row = None if inside else cache.find(parent)
            above = position[parent] if inside else -1 if row is None else cache.position_of(row)
            position[serial] = above + 1
            if above + 1 < end:
                ahead[serial] = 0
            elif inside and ahead.get(parent, DEEPEST) < DEEPEST:
                ahead[serial] = ahead[parent] + 1
            elif row is not None:
                ahead[serial] = 1
        needed = set(expand)
        chosen: list[int] = []
        for index in range(len(found) - 1, -1, -1):
            serial = found.serials[index]
            if serial in ahead and (serial in needed or (serial <= self._decree and not ahead[serial])):
                needed.add(found.parents[index])
                chosen.append(index)
        chosen = chosen[::-1][: cache.row_limit - cache.rows]
        return found.select(chosen), [position[found.serials[index]] for index in chosen]

    def _candidates(self) -> tuple[DraftTokens, bool]:
        """Given tokens that may get a row now, and whether these are all that are left of the prompt, and all others.

        Of a prompt that is being read only as much is looked at as features have come for, and a little more.
        """
        first = self.cache.prefix + 1
        last = min(self._decree, len(self._prompt) - 1, self.states.end + DEEPEST)
        serials = tuple(range(first, last + 1))
        parents = tuple(serial - 1 if serial > 1 else NO_PARENT for serial in serials)
        chain = DraftTokens(serials, parents, tuple(self._prompt[first : last + 1]))
        whole = max(first - 1, last) >= self._decree
        return (chain.followed_by(self._waiting), True) if whole else (chain, False)

    def _outdated(self, expand: tuple[int, ...], new: DraftTokens) -> IntArray:
        """Rows to compute again, increasing: in the prefix and on the paths that matter those that could be made from a
        true state now; and of `expand` those whose parent's output is newer than they are, or about to be."""
        cache, prefix, end = self.cache, self.cache.prefix, self.states.end
        again = set(range(self._settled, min(prefix, end)))
        named = {row for serial in expand if (row := cache.find(serial)) is not None}
        paths = named | {row for parent in new.parents if (row := cache.find(parent)) is not None}
        for row in cache.lineage(row for row in paths if row >= prefix):
            if cache.position_of(row) < end:
                if not self._true[row - prefix]:
                    again.add(row)
            elif row in named:
                parent = cache.parent_of(row)
                made = self._last_made if parent < prefix else self._made[parent - prefix]
                if parent in again or made > self._read[row - prefix]:
                    again.add(row)
        return np.array(sorted(again), np.int64)

    # ---- computing

    def _compute(self, rows: IntArray, draft: DraftTokens) -> None:
        """One forward: `rows` again, and new rows for `draft`."""
        cache, head, prefix = self.cache, self._head, self.cache.prefix
        tokens = [*map(self._token_of, rows.tolist()), *draft.tokens]
        batch = cache.revise(rows, draft)
        true = batch.positions < self.states.end
        # What the parents' outputs that are read now are from; of the prefix only the last row's ever is.
        above = np.where(batch.parents < prefix, -1, batch.parents - prefix)[~true]
        read = np.full(batch.count, self._clock + 1)
        read[~true] = np.append(self._made, self._last_made)[above]
        try:
            embeds = head.embed(torch.tensor(tokens, dtype=torch.int64, device=head.device))
            cache.store(head(embeds, self._states_of(batch, true), cache, batch))
        except BaseException:
            cache.abort()
            raise
        self._clock += 1
        revised = len(rows)
        inside = int(np.searchsorted(rows, prefix))
        for row in rows[:inside].tolist():
            self._unsettled[row - self._settled] = (self._unsettled[row - self._settled][0], True)
        if inside and rows[inside - 1] == cache.last_row:
            self._last_made = self._clock
        self._made[rows[inside:] - prefix] = self._clock
        self._read[rows[inside:] - prefix] = read[inside:revised]
        self._true[rows[inside:] - prefix] = true[inside:revised]
        self._made = np.concatenate((self._made, np.full(len(draft), self._clock)))
        self._read = np.concatenate((self._read, read[revised:]))
        self._true = np.concatenate((self._true, true[revised:]))
        self._join(cache.commit(self._decree))

    def _states_of(self, batch: Batch, true: npt.NDArray[np.bool_]) -> torch.Tensor:
        """What the rows of `batch` take: the target's states where they are `true`, else their parents' outputs."""
        if true.all():
            return self.states.at(batch.positions)
        if not true.any():
            return self.cache.sides_of(batch.parents)
        both = torch.cat((self.states.at(batch.positions[true]), self.cache.sides_of(batch.parents[~true])))
        # A stable sort puts the true ones first; its inverse puts everyone back.
        places = torch.from_numpy(np.argsort(np.argsort(~true, kind="stable")))
        return both.index_select(0, places.to(both.device))

    def _token_of(self, row: int) -> int:
        return self.cache.token_of(row) if row >= self.cache.prefix else self._unsettled[row - self._settled][0]

    def _join(self, tokens: tuple[int, ...]) -> None:
        """The first tree rows, which carry `tokens`, joined the prefix; the prefix is settled as far as it is true."""
        count = len(tokens)
        if count:
            self._unsettled += zip(tokens, self._true[:count].tolist(), strict=True)
            self._last_made = int(self._made[count - 1])
            self._made, self._read, self._true = self._made[count:], self._read[count:], self._true[count:]
            if self.history is not None:
                self.history.add(tokens)
        final = next((i for i, (_, true) in enumerate(self._unsettled) if not true), len(self._unsettled))
        del self._unsettled[:final]
        self._settled += final
        self.states.forget(self._settled)


def rooted(draft: DraftTokens) -> DraftTokens:
    """`draft` as a head's cache sees it: serial 0, at position 0, has no row, so its children have no parent."""
    if 0 not in draft.parents:
        return draft
    return DraftTokens(draft.serials, tuple(parent or NO_PARENT for parent in draft.parents), draft.tokens)


def pieces(rows: IntArray, draft: DraftTokens) -> Iterator[tuple[IntArray, DraftTokens]]:
    """Rows, then tokens, in parts of at most `PREFILL_TOKENS` together."""
    for start in range(0, len(rows) + len(draft), PREFILL_TOKENS):
        end = start + PREFILL_TOKENS
        indices = range(max(0, start - len(rows)), min(len(draft), max(0, end - len(rows))))
        yield rows[start:end], draft if len(indices) == len(draft) else draft.select(list(indices))
