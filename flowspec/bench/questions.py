"""What is asked: the small sets that come with flowspec, and files of one question a line.

A line is a JSON object with `question_id` and `turns`, of which the first is asked (FastChat's `question.jsonl`);
`category` and anything else may be there. Every error names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from flowspec.errors import ConfigurationError

FOLDER: Final = Path(__file__).parent / "prompts"
OWN_SETS: Final = ("code", "chat", "maths", "summaries")


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. `identity` is the file's `question_id`, as text."""

    identity: str
    prompt: str

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with the prompt."""
        return blake2b(self.prompt.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions that are reported together, under `name`."""

    name: str
    questions: tuple[Question, ...]


def read_set(named: str, *, first: int = 0, last: int | None = None) -> QuestionSet:
    """The questions at places `first` to `last`, from 0 and both included, of an own set or of the file `named`."""
    path = FOLDER / f"{named}.jsonl" if named in OWN_SETS else Path(named)
    questions = _read(path, named)
    if not questions:
        raise ConfigurationError(f"{named} has no questions", hint="it is to hold a JSON object a line, with `turns`")
    if first < 0 or (last is not None and last < first):
        until = "the end" if last is None else last
        raise ConfigurationError(
            f"questions {first} to {until} of {named}: there is no such range", hint="places are counted from 0"
        )
    chosen = questions[first : None if last is None else last + 1]
    if not chosen:
        raise ConfigurationError(
            f"{named} has {len(questions)} questions, the last at place {len(questions) - 1}; none from {first} on",
            hint="places are counted from 0 (--first, --last)",
        )
    return QuestionSet(path.stem, tuple(chosen))


def read_sets(names: Sequence[str], *, first: int = 0, last: int | None = None) -> tuple[QuestionSet, ...]:
    """Several sets, each by `read_set`; two that would be reported under one name are refused."""
    sets = tuple(read_set(named, first=first, last=last) for named in names)
    found = [one.name for one in sets]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ConfigurationError(f"two sets are called {', '.join(twice)}", hint="rename one of the files")
    return sets


def _read(path: Path, named: str) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigurationError(
            f"the questions in {named} cannot be read: {error.strerror or error}",
            hint=f"give the path of a file, or one of the sets {', '.join(OWN_SETS)}",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{named} is not UTF-8 text") from None
    questions = [_question(line, f"{named}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    seen: set[str] = set()
    for question in questions:
        if question.identity in seen:
            raise ConfigurationError(f"{named}: there are two questions {question.identity}")
        seen.add(question.identity)
    return questions


def _question(line: str, place: str) -> Question:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{place}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{place}: a question is a JSON object, not {type(value).__name__}")
    identity, turns = value.get("question_id"), value.get("turns")
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        raise ConfigurationError(f"{place}: `question_id` must be a number or a text, not {identity!r}")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
        raise ConfigurationError(f"{place}: `turns` must be a list that begins with the text of the question")
    return Question(str(identity), turns[0])
