"""What recorded runs say: the speeds of all contenders under one condition, over the same questions.

Knows no file and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from flowspec.bench.matrix import Contender
from flowspec.bench.records import Record
from flowspec.bench.statistics import Estimate, Pace, mean_ratio, total

BASELINES: Final = ("chunked", "autoregressive")
"""What ratios are to: the first of these that took part, else whoever was first."""

Paces = Mapping[str, Pace]
"""By question."""


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

    @property
    def title(self) -> str:
        return self.titled(self.pipe)

    def titled(self, pipe: str) -> str:
        """The title, with other words for the pipe."""
        drafts = "" if self.drafter == "auto" else f", drafter {self.drafter}"
        chat = ", as chat" if self.chat else ""
        return f"{self.model}, {pipe}{drafts}, temperature {self.temperature:g}{chat}"


@dataclass(slots=True)
class Tally:
    """What one contender did with one set."""

    paces: dict[str, Pace] = field(default_factory=dict)
    accepted: float = 0.0
    drafted: float = 0.0
    written: float = 0.0
    verdicts: float = 0.0

    def add(self, record: Record) -> None:
        question = f"{record.job.question}/{record.job.seed}"
        self.paces[question] = self.paces.get(question, Pace(0.0, 0.0)) + record.pace
        self.accepted += record.stats["accepted"]
        self.drafted += record.stats["drafted"]
        self.written += record.stats["accepted_per_verdict"] * record.stats["verdicts"]
        self.verdicts += record.stats["verdicts"]


class Comparison:
    """The runs under one condition. Rates and ratios of several sets are means over the sets, as each weighs alike."""

    def __init__(self, condition: Condition, records: Iterable[Record]) -> None:
        self.condition = condition
        self.records = list(records)
        self.sets: dict[str, dict[Contender, Tally]] = {}
        self.occupancy: dict[Contender, dict[str, float]] = {}
        for record in self.records:
            if record.job.traced:
                if record.stages_did is not None:
                    self.occupancy[record.job.contender] = record.stages_did
            else:
                self.sets.setdefault(record.job.set, {}).setdefault(record.job.contender, Tally()).add(record)

    @cached_property
    def contenders(self) -> tuple[Contender, ...]:
        """All that were measured on every set, in the order of policies in which they came."""
        found = dict.fromkeys(who for tallies in self.sets.values() for who in tallies)
        policies = list(dict.fromkeys(who.policy for who in found))
        whole = [who for who in found if all(who in tallies for tallies in self.sets.values())]
        return tuple(sorted(whole, key=lambda who: (policies.index(who.policy), who.swept)))

    @cached_property
    def baseline(self) -> Contender | None:
        """What ratios are to; None when nothing was measured on every set."""
        for policy in BASELINES:
            if (found := self.standard(policy)) is not None:
                return found
        return self.contenders[0] if self.contenders else None

    def standard(self, policy: str) -> Contender | None:
        """The policy as it was set, not swept."""
        return next((who for who in self.contenders if who.policy == policy and not who.swept), None)

    def best(self, policy: str) -> Contender | None:
        """The fastest of a policy's sweep, its standard included; None when it was not swept."""
        variants = [who for who in self.contenders if who.policy == policy]
        if not any(who.swept for who in variants):
            return None
        return max(variants, key=self.rate)

    def rate(self, who: Contender, name: str | None = None) -> float:
        """Tokens per second on one set, or the mean over all."""
        names = [name] if name is not None else list(self.sets)
        return sum(total(self.sets[each][who].paces.values()).rate for each in names) / len(names)

    def ratio(self, who: Contender, to: Contender, name: str | None = None) -> Estimate:
        """How many times as fast as `to`, on one set, or the mean over all, on the questions that both answered."""
        names = [name] if name is not None else list(self.sets)
        return mean_ratio([(self.sets[each][who].paces, self.sets[each][to].paces) for each in names])

    def acceptance(self, who: Contender, name: str | None = None) -> tuple[float, float]:
        """Accepted draft tokens per draft token sent, and tokens per verdict that moved the frontier."""
        tallies = [self.sets[each][who] for each in ([name] if name is not None else self.sets)]
        drafted, verdicts = sum(each.drafted for each in tallies), sum(each.verdicts for each in tallies)
        share = sum(each.accepted for each in tallies) / drafted if drafted else 0.0
        return share, sum(each.written for each in tallies) / verdicts if verdicts else 0.0

    @property
    def ties(self) -> int:
        """Runs whose tokens differ from the first contender's by shown ties."""
        return sum(not record.agrees for record in self.records)


def compare(records: Iterable[Record]) -> list[Comparison]:
    """One comparison per condition, in the order in which they came."""
    found: dict[Condition, list[Record]] = {}
    for record in records:
        job = record.job
        condition = Condition(
            job.model, job.pipe, job.stages, job.profile, job.rate_mbit, job.drafter, job.temperature, job.chat
        )
        found.setdefault(condition, []).append(record)
    return [Comparison(condition, those) for condition, those in found.items()]
