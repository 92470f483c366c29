"""What is written and guessed in a simulation: seeded text with a drafter that is right as often as it is told to be.

A recording of a real run (`recording`) is another `Language`. Neither knows time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flowspec.schedule.events import GrowTree
from flowspec.synthetic.guesses import Children, Quality, SyntheticGuesses
from flowspec.synthetic.text import SyntheticText


class Guesses(Protocol):
    """A drafter of one session."""

    def grow(self, command: GrowTree, width: int) -> Children: ...


class Language(Protocol):
    """What is written, and guessed, in the session with that number."""

    def target(self, session: int) -> Callable[[int], int]:
        """The token that the model writes at a position, the first token of the prompt being at 0."""
        ...

    def guesses(self, session: int) -> Guesses: ...


@dataclass(frozen=True, slots=True)
class SyntheticLanguage:
    """Seeded text, and a drafter that is right as often as `quality` says; each session has a seed of its own."""

    quality: Quality
    seed: int = 0

    def target(self, session: int) -> Callable[[int], int]:
        return SyntheticText(self.seed + session).token

    def guesses(self, session: int) -> Guesses:
        return SyntheticGuesses(self.seed + session, self.quality)
