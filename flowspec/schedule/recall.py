"""Guesses that cost nothing: what followed the same tokens earlier in the text, put into the tree at once.

A drafter takes a step for each level of the tree; what the text has said before is there without one. So after a token
that nobody guessed the pipe need not wait where text repeats itself, and the drafter's next step reads a whole copied
run in one forward and has its say about every token of it. How far copies are believed follows from how often they
came true. Done only for drafters that look text up anyway (n-grams, alone or joined with a model). Pure: knows no
drafter and no pipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, takewhile
from math import log

from flowspec.schedule.suffix_index import LONGEST, SuffixIndex
from flowspec.schedule.tree import DraftToken, DraftTree, Reroot


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """How much is copied."""

    chance: float = 0.5
    """Probability behind its parent that a copied token must have."""
    floor: float = 0.03
    """The same behind the root."""
    starts: int = 2
    """Most tokens of the tree that are continued at once."""
    length: int = 12
    """Most tokens that are copied behind one of them."""
    smoothing: float = 0.05
    """Weight of the newest outcome in the running means that tell how far to believe copies."""
    first_impression: float = 4.0
    """That copies come true as often as counts say is believed at first as if so many had been seen."""


class Recall:
    """One session's text, and what it says about what may come."""

    def __init__(self, settings: RecallSettings | None = None) -> None:
        self.settings = settings or RecallSettings()
        self._index = SuffixIndex()
        self._promised = self._kept = 1.0
        """Smoothed probability that was given to copies, and how often they came true."""
        self._judged = 0

    @property
    def known(self) -> int:
        """Tokens of the text that were taken."""
        return len(self._index.tokens)

    @property
    def trust(self) -> float:
        """Factor on the probability of a copy: with sampling, a text repeats itself less than counts say."""
        return min(1.0, self._kept / self._promised)

    def take(self, tokens: Iterable[int]) -> None:
        """Certain tokens, in their order in the text."""
        for token in tokens:
            self._index.add(token)

    def judge(self, moved: Reroot) -> None:
        """A verdict says which copies came true, or would have."""
        settings = self.settings
        for accepted, successor in zip(moved.passed, (*moved.passed[1:], moved.root), strict=True):
            if accepted.copy is not None:
                token, chance = accepted.copy
                self._judged += 1
                weight = max(settings.smoothing, 1 / (self._judged + settings.first_impression))
                self._promised += weight * (chance - self._promised)
                self._kept += weight * ((token == successor.token) - self._kept)

    def extend(self, tree: DraftTree, depth_limit: int) -> None:
        """Continue the likeliest leaves of `tree`, whose root is the last token taken; nothing at `depth_limit`."""
        floor = log(self.settings.floor)
        likely = takewhile(lambda token: token.score >= floor, tree.ranking())
        leaves = (token for token in likely if not (token.children or token.looked_up or token.promised))
        for leaf in list(islice(leaves, self.settings.starts)):
            self._continue(tree, leaf, floor, depth_limit)

    def _continue(self, tree: DraftTree, leaf: DraftToken, floor: float, depth_limit: int) -> None:
        settings, trust, tokens = self.settings, self.trust, self._index.tokens
        context = [*tokens[-LONGEST:], *tree.path(leaf.serial)][-LONGEST:]
        token, score = leaf, leaf.score
        for _ in range(leaf.depth + 1, min(leaf.depth + 1 + settings.length, depth_limit)):
            token.looked_up = True
            found = self._index.follower(context)
            if found is None:
                return
            # Also where it is not believed, so that it may be believed again.
            token.copy = found
            follower, chance = found
            believed = chance * trust
            if believed < settings.chance or (score := score + log(believed)) < floor:
                return
            (serial,) = tree.merge(token.serial, ((follower, log(believed)),))
            token = tree[serial]
            context = [*context[1 - LONGEST :], follower]
