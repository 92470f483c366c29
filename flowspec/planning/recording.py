"""A real run, written down so that any schedule can be simulated on it: what the target wrote, what the drafter said.

The file holds one JSON object a line. The first says what was recorded; then, for each prompt, a line with its token
ids, and a line per position of the output:

    {"flowspec_recording": 2, "draft_layers": 3, "looks_text_up": true, "about": {"drafter": "hybrid:eagle3", ...}}
    {"prompt": [1, 2, 3]}
    {"token": 7, "drafts": [[[], [[7, -0.1], [9, -2.5]]], [[9], [[4, -0.3]]]]}

`token` is what the target wrote after the text so far, and `drafts` has, per path of guesses behind that text, the
children that the drafter named there with their log-probabilities, best first. So a token of the true text has exactly
the children that the drafter gave it when it knew all the text before (and, a draft head, the target's features of it:
a pipeline's drafter, which is ahead of them, may do a little worse). Off the true path the recording is as deep and as
wide as it was made; beyond that, children get the mean probabilities of those that were recorded, and since nothing
there ever comes true, only what is sent in vain depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

from flowspec.errors import ConfigurationError
from flowspec.output import OutputFile
from flowspec.planning.language import Opening
from flowspec.schedule.events import GrowTree
from flowspec.synthetic.guesses import Children

FORMAT = 2

HOW_TO_MAKE = "python -m flowspec.bench.record writes one"

BEYOND = 1 << 40
"""The first of the token ids that stand for what was not recorded: more than any vocabulary has, so that none of them
ever comes true."""

Guessed = tuple[int, ...]
Guess = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Position:
    """What was recorded behind one token of the true text."""

    token: int
    """The target's next token."""
    drafts: dict[Guessed, Guess]
    """Children by path of guesses; the empty path is the token itself."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One prompt and what was written behind it; `positions[0]` belongs to the last token of the prompt."""

    prompt: tuple[int, ...]
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A `Language` of as many sessions as wanted: they take the passages in turn."""

    passages: tuple[Passage, ...]
    draft_layers: int = 1
    """Of the drafter, where it is a head: devices are slower with more."""
    looks_text_up: bool = False
    """The drafter is one that copies what the text has said before."""
    about: dict[str, Any] = field(default_factory=dict)
    """How it was made, for its readers."""

    def passage(self, session: int) -> Passage:
        return self.passages[session % len(self.passages)]

    def opening(self, session: int) -> Opening:
        passage = self.passage(session)
        return Opening(passage.prompt, len(passage.positions), self.looks_text_up)

    def target(self, session: int) -> Callable[[int], int]:
        passage = self.passage(session)
        first = len(passage.prompt)

        def token(position: int) -> int:
            # Whoever looks one token past the end gets one that nobody guessed.
            index = position - first
            return passage.positions[index].token if index < len(passage.positions) else -1

        return token

    def guesses(self, session: int) -> RecordedGuesses:
        return RecordedGuesses(self.passage(session), self.typical)

    @property
    def typical(self) -> tuple[float, ...]:
        """Mean probabilities of a token's children, the best first."""
        found = [guess for passage in self.passages for each in passage.positions for guess in each.drafts.values()]
        widest = max((len(guess) for guess in found), default=0)
        sums = [sum(exp(guess[rank][1]) for guess in found if rank < len(guess)) for rank in range(widest)]
        return tuple(total / len(found) for total in sums)

    # ---- the file ----------------------------------------------------------------------------------------------------

    def write(self, path: str | Path) -> None:
        drafter = {"draft_layers": self.draft_layers, "looks_text_up": self.looks_text_up}
        lines = [json.dumps({"flowspec_recording": FORMAT, **drafter, "about": self.about})]
        for passage in self.passages:
            lines.append(json.dumps({"prompt": passage.prompt}))
            lines += [_line(position) for position in passage.positions]
        with recording_file(path).replaced() as file:
            file.write("\n".join(lines) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Recording:
        """The recording in a file; `ConfigurationError` names the line that is none of one."""
        try:
            with Path(path).open(encoding="utf-8") as file:
                lines = list(file)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}", hint=HOW_TO_MAKE) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path} is no text", hint=HOW_TO_MAKE) from None
        return cls._of_lines(str(path), lines)

    @classmethod
    def _of_lines(cls, path: str, lines: Iterable[str]) -> Recording:
        first: dict[str, Any] | None = None
        passages: list[tuple[tuple[int, ...], list[Position]]] = []
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
                if first is None:
                    first = _header(value)
                elif "prompt" in value:
                    passages.append((tuple(int(token) for token in value["prompt"]), []))
                else:
                    passages[-1][1].append(_position(value))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise ConfigurationError(
                    f"{path}:{number} is no line of a recording: {type(error).__name__}: {error}", hint=HOW_TO_MAKE
                ) from None
        whole = tuple(Passage(prompt, tuple(positions)) for prompt, positions in passages if prompt and positions)
        if not whole:
            raise ConfigurationError(f"{path} holds no recorded text", hint=HOW_TO_MAKE)
        return cls(whole, **(first or {}))


def _header(value: dict[str, Any]) -> dict[str, Any]:
    """The first line's values, as `Recording` takes them."""
    version = value["flowspec_recording"]
    if version != FORMAT:
        raise ValueError(f"format {version}, this release reads {FORMAT}")
    layers = int(value["draft_layers"])
    if layers < 1:
        raise ValueError(f"a drafter of {layers} layers")
    return {
        "draft_layers": layers,
        "looks_text_up": bool(value["looks_text_up"]),
        "about": dict(value["about"]),
    }


def _line(position: Position) -> str:
    drafts = [
        [list(path), [[token, round(score, 4)] for token, score in guess]] for path, guess in position.drafts.items()
    ]
    return json.dumps({"token": position.token, "drafts": drafts}, separators=(",", ":"))


def _position(value: dict[str, Any]) -> Position:
    drafts = {
        tuple(int(token) for token in path): tuple((int(token), min(0.0, float(score))) for token, score in guess)
        for path, guess in value["drafts"]
    }
    return Position(int(value["token"]), drafts)


class _Known(NamedTuple):
    """A token that the drafter was given: the last one of the true text before it, and the path from there."""

    place: int
    path: Guessed


class RecordedGuesses:
    """The drafter of one session: it says what it said."""

    def __init__(self, passage: Passage, typical: tuple[float, ...]) -> None:
        self._passage = passage
        self._last = len(passage.prompt) - 1
        self._typical = tuple((BEYOND + rank, log(chance)) for rank, chance in enumerate(typical) if chance > 0.0)
        self._known: dict[int, _Known] = {}

    def grow(self, command: GrowTree, width: int) -> Children:
        """At most `width` children of each expanded token; an unknown one has none."""
        draft = command.draft
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            self._known[serial] = self._place(serial, parent, token, serial <= command.decree)
        if command.frontier is not None:
            for serial in [known for known in self._known if known < command.frontier]:
                del self._known[serial]
        return tuple(
            (serial, self._children(self._known[serial])[:width]) for serial in command.expand if serial in self._known
        )

    def _place(self, serial: int, parent: int, token: int, decreed: bool) -> _Known:
        if decreed:
            return _Known(serial - self._last, ())
        above = self._known.get(parent)
        if above is None:
            return _Known(len(self._passage.positions), (token,))
        at = above.place
        if not above.path and 0 <= at < len(self._passage.positions) and self._passage.positions[at].token == token:
            return _Known(at + 1, ())
        return _Known(at, (*above.path, token))

    def _children(self, known: _Known) -> Guess:
        if 0 <= known.place < len(self._passage.positions):
            found = self._passage.positions[known.place].drafts.get(known.path)
            if found is not None:
                return found
        return self._typical


def recording_file(path: str | Path) -> OutputFile:
    """Where a recording is to be written; to be checked before anything is recorded."""
    return OutputFile(path, "the recording")
