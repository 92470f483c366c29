"""What one stage does with one session: append a segment, run the layers, prune, and at the tail walk the verdict.

Everything here runs on the compute thread, except `note`. It knows no channel and no other session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from flowspec.errors import InvariantViolation
from flowspec.model.sampling import TokenHistory
from flowspec.model.synthetic_block import AnyBlock
from flowspec.roles.stage_trace import StageTrace
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.wire.messages import FINAL, DraftTokens, Open, Segment

Collected = Callable[[int, tuple[torch.Tensor, ...]], None]
"""Told of accepted positions from `first` on: per tap a tensor (count, hidden) on the CPU. From the compute thread."""

WALK_ROWS = 4
"""Most rows that go through the LM head together."""


def bytes_limit(opened: Open, block: AnyBlock) -> int:
    """Most bytes that a session may come to hold at a stage: rows, and features that wait to be acknowledged."""
    features = len(block.taps_here(opened.taps)) * block.hidden_size * block.dtype.itemsize
    return opened.row_limit * (block.row_bytes + features)


@dataclass(frozen=True, slots=True)
class Step:
    """What is left of a segment after this stage, and the tail's newest verdict (frontier, token)."""

    draft: DraftTokens
    hidden: torch.Tensor | None  # (tokens of draft, hidden), None when the draft is empty or this is the tail
    computed: int
    verdict: tuple[int, int] | None = None
    moved: bool = False
    """The verdict is newer than the one before this step."""
    abandoned: bool = False
    """All of it died while it was computed."""


class StageSession:
    """One session in one epoch at one stage. Frees its rows with `free`.

    What its drafter wants of this stage's `taps` is kept in the cache's side column, beside the tail's final hidden
    state, until the row is accepted, and is then given to `collected`, each position once and in order.
    """

    def __init__(
        self, opened: Open, block: AnyBlock, device: EmulatedDevice, collected: Collected | None = None
    ) -> None:
        self.session = opened.session
        self.epoch = opened.epoch
        self.next_number = 0
        self._prunes = opened.prunes
        self._deferred: tuple[int, int] | None = None
        """The newest verdict, of a session that does not prune: its features are collected, its rows stay."""
        self.row_limit = opened.row_limit
        self.bytes_limit = bytes_limit(opened, block)
        self._block = block
        self._device = device
        self._heard = threading.Event()
        self._cache = block.new_cache(opened.row_limit)
        self.taps = block.taps_here(opened.taps) if collected is not None else ()
        self._inside = tuple(tap for tap in self.taps if block.first_layer <= tap < block.end_layer)
        self._collected = collected
        self._features = 0
        """Positions below this were collected."""
        self._followed: tuple[int, int] | None = None
        """The newest verdict whose rows were collected before the prune."""
        self._cancelled = False
        self.trace: StageTrace | None = None
        """Where this session is noted; None when nobody asked for it."""
        self._verdict: tuple[int, int] | None = None
        self._sampler = block.sampler(opened.sampling) if block.is_tail else None
        self._history = (
            TokenHistory(block.vocab_size) if self._sampler is not None and self._sampler.needs_history else None
        )

    @property
    def rows(self) -> int:
        return self._cache.rows

    def note(self, frontier: int, token: int) -> bool:
        """A verdict was heard; takes effect at the next chance. False when it is not news. Safe from any thread."""
        before = self._newest
        if self._prunes:
            self._cache.note(frontier, token)
            self._heard.set()
        elif before is None or frontier > before[0]:
            self._deferred = (frontier, token)
        news = self._newest is not before
        if news and self.trace is not None:
            self.trace.heard(frontier, token)
        return news

    def cancel(self) -> None:
        """Nothing of this session is wanted any more. Safe from any thread."""
        self._cancelled = True
        self._heard.set()

    def alive(self) -> bool:
        """Is anything of the segment that is being computed still wanted? Asked between layers.

        What a verdict has accepted meanwhile is collected on the way, so that it need not wait for the forward's end.
        """
        if self.taps:
            self.collect()
        return not self._cancelled and self._cache.alive()

    def step(self, segment: Segment, hidden: torch.Tensor | None) -> Step:
        """Run the living part of `segment`; `hidden` is (tokens, hidden), None at stage 1."""
        began = self._device.begin(segment.ticket)
        if not self._prunes:
            self._heed(segment)
        self._prune()
        living = [] if self._cancelled else self._cache.admit(segment.draft)
        if not living:
            return Step(DraftTokens(), None, 0, self._verdict)
        draft = segment.draft if len(living) == len(segment.draft) else segment.draft.select(living)
        output = self._forward(draft, self._inputs(draft, hidden, living, len(segment.draft)), began)
        if output is None:
            return Step(DraftTokens(), None, len(draft), self._verdict, abandoned=True)
        if self.taps and draft.serials[0] <= segment.decree:
            self._collect(max(serial for serial in draft.serials if serial <= segment.decree), opened=True)
        self._remember(self._cache.commit(segment.decree))
        if self._sampler is not None:
            moved = self._walk(segment.decree)
            return Step(DraftTokens(), None, len(draft), self._verdict, moved)
        self._prune()
        kept = self._still_alive(draft, segment.decree)
        if len(kept) < len(draft):
            draft, output = draft.select(kept), output[kept]
        return Step(draft, output if len(draft) else None, len(living))

    def traced_step(self, segment: Segment, hidden: torch.Tensor | None) -> Step:
        """`step`, noted."""
        assert self.trace is not None
        begun = self.trace.clock()
        step = self.step(segment, hidden)
        self.trace.computed(segment.ticket, begun)
        return step

    def collect(self) -> None:
        """Collect the features of what the newest verdict that was heard accepts, however much of it is here."""
        noted = self._newest
        if noted is not None and noted is not self._followed:
            self._followed = noted
            self._collect(noted[0])

    def stop_collecting(self) -> None:
        """Nobody reads this session's features any more. Safe from any thread."""
        self.taps = ()

    def free(self) -> None:
        self.taps = ()
        self._cache.free()

    def _inputs(self, draft: DraftTokens, hidden: torch.Tensor | None, living: list[int], total: int) -> torch.Tensor:
        if self._block.is_first:
            return torch.tensor(draft.tokens, dtype=torch.int64)
        if hidden is None or hidden.shape[0] != total:
            raise InvariantViolation(
                "a segment came without a hidden state for each of its tokens", session=self.session
            )
        return hidden if len(living) == total else hidden[living]

    def _forward(self, draft: DraftTokens, inputs: torch.Tensor, began: float) -> torch.Tensor | None:
        """Layers over the living tokens as an open batch; None (and no rows kept) when all of it died meanwhile."""
        cache = self._cache
        batch = cache.begin(draft)
        try:
            seen: dict[int, torch.Tensor] = {}
            output = self._block.forward(inputs, cache, batch, self.alive, seen.__setitem__ if self._inside else None)
            if self._device.emulates:
                layers = self._block.end_layer - self._block.first_layer
                # A segment that died takes the device until the emulated layer ends.
                if not self._device.hold(began, len(draft), layers, self.alive, self._heard):
                    output = None
            if output is not None:
                kept = [output] if self._sampler is not None else []
                kept += [seen[tap] for tap in self._inside]
                if kept:
                    cache.store(kept[0] if len(kept) == 1 else torch.cat(kept, 1))
        except BaseException:
            cache.abort()
            raise
        if output is None:
            cache.abort()
        return output

    @property
    def _newest(self) -> tuple[int, int] | None:
        """The newest verdict that was heard."""
        return self._cache.noted if self._prunes else self._deferred

    def _heed(self, segment: Segment) -> None:
        """In a session that does not prune only what was known when a segment was sent drops anything."""
        for entry in segment.roster:
            if entry.session == self.session and entry.frontier is not None and entry.token is not None:
                self._cache.note(entry.frontier, entry.token)

    def _prune(self) -> None:
        noted = self._cache.noted
        if noted is None:
            return
        self._collect(noted[0])
        # Not a newer one, which may be noted at any moment: what it accepts was not collected.
        pruned = self._cache.prune(noted)
        if pruned is not None:
            self._remember(pruned.accepted_tokens)
            if self.trace is not None:
                self.trace.pruned(noted[0], pruned.dropped, len(pruned.accepted_tokens))

    def _remember(self, tokens: tuple[int, ...]) -> None:
        if self._history is not None and tokens:
            self._history.add(tokens)

    def _collect(self, last: int, *, opened: bool = False) -> None:
        """Hand out the features of the rows up to the accepted token `last`; those of an open batch only if `opened`.

        Has to happen before the rows join the prefix: the side column keeps none of that.
        """
        cache, collected, taps = self._cache, self._collected, self.taps
        row = cache.find(last) if taps and collected is not None else None
        if row is None or row < cache.prefix or collected is None:
            return
        first = max(self._features, cache.prefix)
        path = cache.lineage([row])[first - cache.prefix :]
        if cache.open_batch is not None and not opened:
            path = [each for each in path if each < cache.open_batch.start]
        if not path:
            return
        self._features = first + len(path)
        kept = cache.sides_of(np.array(path, np.int64))
        size = self._block.hidden_size
        columns = list(kept.split(size, 1))
        output = columns.pop(0) if self._sampler is not None else None
        found = dict(zip(self._inside, columns, strict=True))
        if output is not None:
            found |= {self._block.layer_count: output}
            if FINAL in taps:
                found[FINAL] = self._block.normalise(output)
        collected(first, tuple(found[tap].cpu().contiguous() for tap in taps))

    def _still_alive(self, draft: DraftTokens, decree: int) -> list[int]:
        return [
            index
            for index, serial in enumerate(draft.serials)
            if serial <= decree or self._cache.find(serial) is not None
        ]

    def _walk(self, decree: int) -> bool:
        """Sample along the frontier as far as the rows reach; True when the verdict moved."""
        cache = self._cache
        logits: dict[int, torch.Tensor] = {}
        if self._verdict is None:
            if cache.last_accepted != decree:
                return False
            frontier, token, moved = decree, self._sample(cache.last_row, (), logits), True
        else:
            (frontier, token), moved = self._verdict, False
        row, path = self._end_of(frontier)
        while (child := cache.child_of(row, token)) is not None:
            path.append(token)
            row, frontier, moved = child, cache.serial_of(child), True
            token = self._sample(row, path, logits)
        self._verdict = (frontier, token)
        if moved and self._prunes:
            cache.note(frontier, token)
            self._prune()
        elif moved:
            self._deferred = self._verdict
            self.collect()
        return moved

    def _end_of(self, frontier: int) -> tuple[int, list[int]]:
        """The frontier's row, and the tokens on the way to it from the last accepted row (excluded)."""
        cache = self._cache
        if self._prunes:
            return cache.last_row, []
        row = cache.find(frontier)
        if row is None:
            raise InvariantViolation("a verdict was overtaken by one that the tail never gave", session=self.session)
        return row, list(cache.path_tokens(row))

    def _sample(self, row: int, path: tuple[int, ...] | list[int], logits: dict[int, torch.Tensor]) -> int:
        """The model's token after `row`, whose path from the last accepted row (excluded) is `path`.

        `logits` holds those of rows of this walk that were computed before.
        """
        assert self._sampler is not None
        if row not in logits:
            rows = self._likely_walk(row)
            size = self._block.hidden_size
            hidden = torch.stack([self._cache.side_of(each)[:size] for each in rows])
            logits.update(zip(rows, self._block.logits(hidden), strict=True))
        return self._sampler.sample(logits[row], self._cache.position_of(row) + 1, self._history, path)

    def _likely_walk(self, row: int) -> list[int]:
        """`row` and where the walk may lead: the LM head is read once for all of them, which takes hardly longer.

        The child that came first is the drafter's best.
        """
        rows = [row]
        while len(rows) < WALK_ROWS and (child := self._cache.first_child(rows[-1])) is not None:
            rows.append(child)
        return rows
