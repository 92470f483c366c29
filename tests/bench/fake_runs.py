"""Runs without a pipeline: a client that answers at once, with speeds that a test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowspec.bench.agreement import Written
from flowspec.bench.matrix import Contender, Matrix
from flowspec.bench.pipes import Pipe
from flowspec.bench.questions import Question, QuestionSet
from flowspec.bench.records import Log, Place
from flowspec.bench.runner import Campaign
from flowspec.client import Generation
from flowspec.wire.messages import GenerationStats

PLACE = Place("0.0", "abc", "a machine", 2, {"python": "3"})
SPEEDS = {"autoregressive": 4.0, "chunked": 8.0, "flowspec": 16.0}

Answer = Callable[[str, dict[str, Any]], tuple[int, ...]]


def same_text(prompt: str, options: dict[str, Any]) -> tuple[int, ...]:
    """Tokens that depend on what is asked, and not on who answers."""
    return tuple((len(prompt) + options.get("seed", 0) + place) % 1000 for place in range(options["max_new_tokens"]))


class FakeClient:
    """Remembers what it was asked; `answer` says which tokens come."""

    def __init__(self, answer: Answer = same_text) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.opened: list[tuple[Pipe, str]] = []

    async def generate(self, prompt: str, /, **options: Any) -> Generation:
        self.asked.append((prompt, options))
        tokens = self.answer(prompt, options)
        seconds = (len(tokens) - 1) / SPEEDS[options["policy"]]
        verdicts = len(tokens) // 2
        stats = GenerationStats(len(tokens), seconds, 0.0, 0.1, 2.0, verdicts, 40, 10, 30, 5, 1000)
        return Generation("", tokens, (1, 2, 3), "length", options.get("seed"), stats)

    @asynccontextmanager
    async def open(self, pipe: Pipe, drafter: str) -> AsyncIterator[FakeClient]:
        self.opened.append((pipe, drafter))
        yield self

    @property
    def measured(self) -> list[tuple[str, str]]:
        """(policy, prompt) of all runs but those that warm up."""
        return [(options["policy"], prompt) for prompt, options in self.asked if "seed" in options]


class FakeJudge:
    """Finds fault with the streams that a test names."""

    def __init__(self, fault: str | None = None) -> None:
        self.found = fault
        self.seen: list[Written] = []

    def fault(self, written: Written) -> str | None:
        self.seen.append(written)
        return self.found


def questions(name: str = "own", count: int = 3) -> QuestionSet:
    return QuestionSet(name, tuple(Question(str(number), f"question {number}") for number in range(count)))


def matrix(*sets: QuestionSet, **changes: Any) -> Matrix:
    contenders = tuple(map(Contender, SPEEDS))
    values = {"pipes": (Pipe(),), "contenders": contenders, "new_tokens": 9, **changes}
    return Matrix(sets=sets or (questions(),), **values)


def campaign(client: FakeClient, path: Path, asked: Matrix | None = None, judge: FakeJudge | None = None) -> Campaign:
    return Campaign(asked or matrix(), Log(path), client.open, judge or FakeJudge(), lambda _: None, PLACE)
