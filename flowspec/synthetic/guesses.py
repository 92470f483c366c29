"""A drafter that knows the text and pretends not to: it is right as often as its probabilities say.

For a token whose path is the text so far, the next token of the text is among the guesses at rank i with exactly the
probability that the guess at rank i is given. So scores are calibrated, and one number, `quality`, decides how good
drafts are:

    confidence     c = u ** ((1 - quality) / quality), u uniform: between 0 and 1 with mean `quality`, often near 1
    rank 1         probability c
    rank i >= 2    probability (1 - c) * (1 - MISSED) * 2 ** (1 - i)

A token beside the text gets guesses of the same kind, none of which comes true. Knows no pipe and takes no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Final, NamedTuple

from flowspec.schedule.events import GrowTree
from flowspec.synthetic.text import VOCABULARY, SyntheticText, mix, uniform

PAPER_TOKENS_PER_ROUND: Final = 5.4
"""What `chunked` writes in a round with the drafts of the paper's set-up, at temperature 0 (see `calibration`)."""

MISSED: Final = 0.15
"""Share of what the first guess leaves that no number of guesses would catch."""

LEAST_CHANCE: Final = 1e-300
"""Probability of a guess that would else have none, and no logarithm."""

_CONFIDENCE, _RANK, _GUESS, _BRANCH = range(4)

Children = tuple[tuple[int, tuple[tuple[int, float], ...]], ...]


class _Known(NamedTuple):
    """A token that the drafter has been given."""

    position: int
    key: int
    """Stands for the whole path up to the token."""
    true: bool
    """The path is the text."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good guesses are; `mean` is the mean probability of the best one, above 0 and below 1."""

    mean: float

    def chances(self, draw: float, width: int) -> list[float]:
        """Probabilities of the `width` best guesses where the confidence is drawn with `draw` in [0, 1)."""
        confidence = max(draw, 1e-12) ** ((1.0 - self.mean) / self.mean)
        confidence = min(max(confidence, LEAST_CHANCE), 1.0 - 1e-9)
        left = (1.0 - confidence) * (1.0 - MISSED)
        found = [confidence] + [left * 2.0**-rank for rank in range(1, width)]
        return sorted(found, reverse=True)


class SyntheticGuesses:
    """The guesses of one session, in one epoch."""

    def __init__(self, seed: int, quality: Quality) -> None:
        self._text = SyntheticText(seed)
        self._seed = seed
        self._quality = quality
        self._known: dict[int, _Known] = {}

    def grow(self, command: GrowTree, width: int) -> Children:
        """Read what is new, forget what a verdict left behind, and guess `width` children of each expanded token."""
        for serial, parent, token in zip(
            command.draft.serials, command.draft.parents, command.draft.tokens, strict=True
        ):
            self._read(serial, parent, token, serial <= command.decree)
        if command.frontier is not None:
            for serial in [known for known in self._known if known < command.frontier]:
                del self._known[serial]
        return tuple(
            (serial, self._guess(self._known[serial], width)) for serial in command.expand if serial in self._known
        )

    def _read(self, serial: int, parent: int, token: int, decreed: bool) -> None:
        above = self._known.get(parent)
        if above is None:
            # The first token of the prompt; any other whose parent was forgotten is beside the text.
            self._known[serial] = _Known(max(0, parent + 1), mix(self._seed, _BRANCH, serial), decreed)
            return
        position = above.position + 1
        true = above.true and (decreed or token == self._text.token(position))
        key = mix(self._seed, _BRANCH, position) if true else mix(above.key, token)
        self._known[serial] = _Known(position, key, true)

    def _guess(self, known: _Known, width: int) -> tuple[tuple[int, float], ...]:
        chances = self._quality.chances(uniform(known.key, _CONFIDENCE), width)
        tokens = list(dict.fromkeys(mix(known.key, _GUESS, rank) % VOCABULARY for rank in range(width + 1)))[:width]
        if known.true:
            truth = self._text.token(known.position + 1)
            tokens = [token if token != truth else (truth + 1 + rank) % VOCABULARY for rank, token in enumerate(tokens)]
            place = _place(uniform(known.key, _RANK), chances)
            if place is not None and place < len(tokens):
                tokens[place] = truth
        return tuple((token, log(chance)) for token, chance in zip(tokens, chances, strict=False))


def _place(draw: float, chances: list[float]) -> int | None:
    """The rank that `draw` in [0, 1) falls on when each rank is as likely as `chances` says; None: on none."""
    for rank, chance in enumerate(chances):
        if draw < chance:
            return rank
        draw -= chance
    return None
