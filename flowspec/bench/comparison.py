"""What recorded runs say: the speeds of all contenders under one condition, over the same questions.

Knows no file and draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Final

from flowspec.bench.matrix import Contender
from flowspec.bench.records import Record
from flowspec.bench.statistics import Estimate, Pace, mean_ratio, total

BASELINES: Final = ("chunked", "autoregressive")
"""What ratios are to: the first of these that took part, else whoever was first."""

PLAIN: Final = "autoregressive"
"""Its speed does not depend on how much it writes, so shorter runs of it stand beside longer ones of others."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Under which all contenders are compared."""

    model: str
    pipe: str
    stages: int
    profile: str | None
    rate_mbit: float | None
    drafter: str
    temperature: float
    chat: bool
    new_tokens: int

    @property
    def title(self) -> str:
        return self.titled(self.pipe)

    def titled(self, pipe: str) -> str:
        """The title, with other words for the pipe."""
        drafts = "" if self.drafter == "auto" else f", drafter {self.drafter}"
        chat = ", as chat" if self.chat else ""
        return f"{self.model}, {pipe}{drafts}, temperature {self.temperature:g}{chat}, {self.new_tokens} tokens"


@dataclass(slots=True)
class Tally:
    """What one contender did with one set: its runs, by question."""

    runs: dict[str, list[Record]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.runs.setdefault(f"{record.job.question}/{record.job.seed}", []).append(record)

    def mean(self, question: str, figure: Callable[[Record], float]) -> float:
        """Over the runs of one question, so that one that was asked more often counts no more."""
        return fmean(map(figure, self.runs[question]))

    def paces(self, questions: Iterable[str]) -> dict[str, Pace]:
        """By question."""
        return {
            question: Pace(
                self.mean(question, lambda run: run.pace.tokens), self.mean(question, lambda run: run.pace.seconds)
            )
            for question in questions
        }

    def sum(self, questions: Iterable[str], figure: Callable[[Record], float]) -> float:
        return sum(self.mean(question, figure) for question in questions)


class Comparison:
    """The runs under one condition. Rates and ratios of several sets are means over the sets, as each weighs alike."""

    def __init__(self, condition: Condition, records: Iterable[Record]) -> None:
        self.condition = condition
        self.records = list(records)
        self.occupancy: dict[Contender, dict[str, float]] = {}
        self._sets: dict[str, dict[Contender, Tally]] = {}
        for record in self.records:
            if record.job.traced:
                if record.stages_did is not None:
                    self.occupancy[record.job.contender] = record.stages_did
            else:
                self._sets.setdefault(record.job.set, {}).setdefault(record.job.contender, Tally()).add(record)

    @property
    def sets(self) -> tuple[str, ...]:
        """Their names, as they came."""
        return tuple(self._sets)

    @cached_property
    def contenders(self) -> tuple[Contender, ...]:
        """All that are compared, in the order of policies in which they came."""
        compared, _ = self._in_common
        policies = list(dict.fromkeys(who.policy for tallies in self._sets.values() for who in tallies))
        return tuple(sorted(compared, key=lambda who: (policies.index(who.policy), who.swept)))

    @cached_property
    def questions(self) -> Mapping[str, tuple[str, ...]]:
        """By set those that all contenders have answered: nothing else counts."""
        return self._in_common[1]

    @cached_property
    def _in_common(self) -> tuple[tuple[Contender, ...], dict[str, tuple[str, ...]]]:
        """Contenders that were measured on every set, and the questions that all of them answered.

        One who shares no question with those who answered more is left out.
        """
        tallies = self._sets.values()
        found = dict.fromkeys(who for each in tallies for who in each)
        whole = [who for who in found if all(who in each for each in tallies)]
        whole.sort(key=lambda who: -sum(len(each[who].runs) for each in tallies))
        compared: list[Contender] = []
        shared: dict[str, tuple[str, ...]] = {}
        for who in whole:
            answered = {name: self._sets[name][who].runs for name in self._sets}
            both = {
                name: tuple(question for question in shared.get(name, runs) if question in runs)
                for name, runs in answered.items()
            }
            if all(both.values()):
                compared.append(who)
                shared = both
        return tuple(compared), shared

    @property
    def left_out(self) -> int:
        """Questions that somebody has answered, but not all."""
        answered = {
            (name, question)
            for name, tallies in self._sets.items()
            for tally in tallies.values()
            for question in tally.runs
        }
        return len(answered) - sum(map(len, self.questions.values()))

    @cached_property
    def baseline(self) -> Contender | None:
        """What ratios are to; None when nothing was measured on every set."""
        for policy in BASELINES:
            if (found := self.standard(policy)) is not None:
                return found
        return self.contenders[0] if self.contenders else None

    def standard(self, policy: str) -> Contender | None:
        """The policy as it was set, not swept, and with all of its mechanisms where it was also measured without."""
        as_set = [who for who in self.contenders if who.policy == policy and not who.swept]
        return min(as_set, key=lambda who: len(who.options), default=None)

    def best(self, policy: str) -> Contender | None:
        """The fastest of a policy's sweep, its standard included; None when it was not swept."""
        variants = [who for who in self.contenders if who.policy == policy]
        if not any(who.swept for who in variants):
            return None
        return max(variants, key=self.rate)

    def rate(self, who: Contender, name: str | None = None) -> float:
        """Tokens per second on one set, or the mean over all."""
        return fmean(total(self._paces(who, each).values()).rate for each in self._named(name))

    def ratio(self, who: Contender, to: Contender, name: str | None = None) -> Estimate:
        """How many times as fast as `to`, on one set, or the mean over all."""
        return mean_ratio([(self._paces(who, each), self._paces(to, each)) for each in self._named(name)])

    def acceptance(self, who: Contender, name: str | None = None) -> tuple[float, float]:
        """Accepted draft tokens per draft token sent, and tokens per verdict that moved the frontier."""
        drafted = self._sum(who, name, lambda run: run.stats["drafted"])
        verdicts = self._sum(who, name, lambda run: run.stats["verdicts"])
        written = self._sum(who, name, lambda run: run.stats["accepted_per_verdict"] * run.stats["verdicts"])
        accepted = self._sum(who, name, lambda run: run.stats["accepted"])
        return accepted / drafted if drafted else 0.0, written / verdicts if verdicts else 0.0

    def _named(self, name: str | None) -> tuple[str, ...]:
        return self.sets if name is None else (name,)

    def _paces(self, who: Contender, name: str) -> dict[str, Pace]:
        return self._sets[name][who].paces(self.questions[name])

    def _sum(self, who: Contender, name: str | None, figure: Callable[[Record], float]) -> float:
        return sum(self._sets[each][who].sum(self.questions[each], figure) for each in self._named(name))

    @property
    def ties(self) -> int:
        """Runs whose tokens differ from the first contender's by shown ties."""
        return sum(not record.agrees for record in self.records)


def compare(records: Iterable[Record]) -> list[Comparison]:
    """One comparison per condition, in the order in which they came."""
    found: dict[Condition, list[Record]] = {}
    for record in records:
        found.setdefault(_condition(record), []).append(record)
    for condition, those in list(found.items()):
        if all(record.job.policy == PLAIN for record in those):
            longer = [
                other
                for other in found
                if other != condition and replace(other, new_tokens=condition.new_tokens) == condition
            ]
            for other in longer:
                found[other] += those
            if longer:
                del found[condition]
    return [Comparison(condition, those) for condition, those in found.items()]


def _condition(record: Record) -> Condition:
    job = record.job
    return Condition(
        job.model,
        job.pipe,
        job.stages,
        job.profile,
        job.rate_mbit,
        job.drafter,
        job.temperature,
        job.chat,
        job.new_tokens,
    )
