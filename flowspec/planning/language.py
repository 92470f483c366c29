"""What is written and guessed in a simulation: seeded text with a drafter that is right as often as it is told to be.

A recording of a real run (`recording`) is another `Language`, a real drafter (`bench.rehearsal`) a third. They know no
time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flowspec.schedule.events import GrowTree
from flowspec.synthetic.guesses import Children, Quality, SyntheticGuesses
from flowspec.synthetic.text import SyntheticText


class Guesses(Protocol):
    """A drafter of one session."""

    def grow(self, command: GrowTree, width: int) -> Children: ...


@runtime_checkable
class FeatureReader(Guesses, Protocol):
    """A drafter that reads the target's hidden states, as they come."""

    def learn(self, count: int) -> None:
        """Those of all positions below `count` are there; the next step sees them."""
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """How a session begins, where that is not free."""

    prompt: tuple[int, ...]
    length: int
    """Tokens that can be written behind it."""
    recalls: bool
    """The drafter looks text up: what the text has said before is copied without asking it."""


class Language(Protocol):
    """What is written, and guessed, in the session with that number."""

    def opening(self, session: int) -> Opening | None:
        """None: any prompt will do, and the text has no end."""
        ...

    def target(self, session: int) -> Callable[[int], int]:
        """The token that the model writes at a position, the first token of the prompt being at 0."""
        ...

    def guesses(self, session: int) -> Guesses: ...


@dataclass(frozen=True, slots=True)
class SyntheticLanguage:
    """Seeded text, and a drafter that is right as often as `quality` says; each session has a seed of its own."""

    quality: Quality
    seed: int = 0

    def opening(self, session: int) -> None:
        return None

    def target(self, session: int) -> Callable[[int], int]:
        return SyntheticText(self.seed + session).token

    def guesses(self, session: int) -> Guesses:
        return SyntheticGuesses(self.seed + session, self.quality)
