"""What is compared with what: pipes x drafters x temperatures x questions x contenders, in the order of the runs.

One pipe with one drafter is started once (a block). On it every question is answered by all contenders before the next
is asked, each time in another order, so that whatever drifts meets all of them alike. Starts and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from typing import Final

from flowspec.bench.pipes import Pipe
from flowspec.bench.questions import Question, QuestionSet
from flowspec.errors import ConfigurationError
from flowspec.schedule.options import PolicyOptions, read_options

Options = tuple[tuple[str, str], ...]

MECHANISMS: Final = ("score_order", "prune", "expansion")
"""Options of `flowspec` that are switches: what it owes its speed to."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with options as text; `swept` ones are candidates for the best of their sweep."""

    policy: str
    options: Options = ()
    swept: bool = False
    new_tokens: int | None = None
    """Fewer tokens than the others write, for a policy whose speed does not depend on the text."""

    @property
    def label(self) -> str:
        """E.g. "chunked tree=40"."""
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True, slots=True)
class Job:
    """One run: everything that has to be equal for a recorded one to stand for it."""

    model: str
    pipe: str
    stages: int
    profile: str | None
    rate_mbit: float | None
    drafter: str
    temperature: float
    seed: int
    chat: bool
    set: str
    question: str
    digest: str
    """Of the prompt."""
    policy: str
    options: Options
    swept: bool
    new_tokens: int
    repeat: int
    traced: bool = False
    """Watched for what the stages do; its speed does not count."""

    @property
    def contender(self) -> Contender:
        return Contender(self.policy, self.options, self.swept)


@dataclass(frozen=True, slots=True)
class Round:
    """A question and who answers it, in that order."""

    question: Question
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The rounds of one pipe with one drafter."""

    pipe: Pipe
    drafter: str
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A campaign. Each of `repeats` asks every question once more."""

    pipes: tuple[Pipe, ...]
    sets: tuple[QuestionSet, ...]
    contenders: tuple[Contender, ...]
    drafters: tuple[str, ...] = ("auto",)
    temperatures: tuple[float, ...] = (0.0,)
    new_tokens: int = 128
    seed: int = 7
    repeats: int = 1
    chat: bool = False
    traced: bool = False
    """At the end of a block, every contender answers the first question once more, watched."""

    def __post_init__(self) -> None:
        for name in ("pipes", "sets", "contenders", "drafters", "temperatures"):
            if not getattr(self, name):
                raise ConfigurationError(f"nothing to measure: no {name}")
        if self.new_tokens < 2:
            raise ConfigurationError(
                f"{self.new_tokens} new tokens; at least 2 are needed, since speed is counted after the first"
            )
        for temperature in self.temperatures:
            if not 0.0 <= temperature < inf:
                raise ConfigurationError(f"a temperature of {temperature:g}; it must be 0 or more")
        if self.repeats < 1:
            raise ConfigurationError(f"{self.repeats} repeats; a question is asked at least once")

    def blocks(self) -> Iterator[Block]:
        """In the order of the runs."""
        for pipe, drafter in product(self.pipes, self.drafters):
            yield Block(pipe, drafter, tuple(self._rounds(pipe, drafter)))

    def jobs(self) -> Iterator[Job]:
        """All runs."""
        for block in self.blocks():
            for each in block.rounds:
                yield from each.jobs

    def _rounds(self, pipe: Pipe, drafter: str) -> Iterator[Round]:
        number = 0
        for repeat, temperature, one in product(range(self.repeats), self.temperatures, self.sets):
            for question in one.questions:
                shift = number % len(self.contenders)
                order = (*self.contenders[shift:], *self.contenders[:shift])
                jobs = [self._job(pipe, drafter, temperature, one.name, question, each, repeat) for each in order]
                yield Round(question, tuple(jobs))
                number += 1
        if self.traced:
            one, question = self.sets[0], self.sets[0].questions[0]
            for temperature in self.temperatures:
                jobs = [self._job(pipe, drafter, temperature, one.name, question, each, 0) for each in self.contenders]
                yield Round(question, tuple(replace(job, traced=True) for job in jobs))

    def _job(
        self, pipe: Pipe, drafter: str, temperature: float, name: str, question: Question, who: Contender, repeat: int
    ) -> Job:
        return Job(
            model=pipe.model,
            pipe=pipe.name,
            stages=pipe.stages,
            profile=pipe.profile,
            rate_mbit=pipe.rate_mbit,
            drafter=drafter,
            temperature=temperature,
            seed=seed_of(self.seed, question),
            chat=self.chat,
            set=name,
            question=question.identity,
            digest=question.digest,
            policy=who.policy,
            options=who.options,
            swept=who.swept,
            new_tokens=who.new_tokens or self.new_tokens,
            repeat=repeat,
        )


def seed_of(seed: int, question: Question) -> int:
    """A seed for each question of a campaign: with one for all, the synthetic model would write one text."""
    return seed + int(question.digest, 16)


def contenders_of(
    policies: Sequence[str],
    sweeps: Mapping[str, Mapping[str, Sequence[str]]],
    settings: Mapping[str, Options] | None = None,
) -> tuple[Contender, ...]:
    """Each policy with its settings, then every combination of the values that are swept for it.

    Raises `RequestError` for a policy, an option or a value that there is not, and `ConfigurationError` for a sweep of
    a policy that does not take part.
    """
    found = [Contender(policy, (settings or {}).get(policy, ())) for policy in dict.fromkeys(policies)]
    for policy in {**sweeps, **(settings or {})}:
        if policy not in policies:
            raise ConfigurationError(f"options are given for {policy}, which does not take part")
    for policy, options in sweeps.items():
        base = dict((settings or {}).get(policy, ()))
        for values in product(*options.values()):
            chosen = base | dict(zip(options, values, strict=True))
            found.append(Contender(policy, tuple(chosen.items()), swept=True))
    distinct: dict[tuple[str, PolicyOptions], Contender] = {}
    for each in found:
        # A swept value that is the setting itself is measured once, as the setting.
        distinct.setdefault((each.policy, read_options(each.policy, each.options)), each)
    return tuple(distinct.values())


def ablations(settings: Options = ()) -> tuple[Contender, ...]:
    """`flowspec` without each of its mechanisms, one at a time."""
    return tuple(Contender("flowspec", (*settings, (name, "false"))) for name in MECHANISMS)


def read_assignment(text: str, flag: str) -> tuple[str, str, str]:
    """(policy, option, value) of "chunked.tree=40"."""
    where, equals, value = text.partition("=")
    policy, dot, option = where.partition(".")
    if not (equals and dot and policy and option and value):
        raise ConfigurationError(f"{flag} {text!r}: write POLICY.OPTION=VALUE, such as chunked.tree=40")
    return policy, option, value


def read_sweeps(texts: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """By policy and option the values of "chunked.tree=40,80"; those of several texts add up."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for text in texts:
        policy, option, listed = read_assignment(text, "--sweep")
        values = tuple(value.strip() for value in listed.split(",") if value.strip())
        if not values:
            raise ConfigurationError(f"--sweep {text!r} has no value")
        options = found.setdefault(policy, {})
        options[option] = tuple(dict.fromkeys((*options.get(option, ()), *values)))
    return found


def read_settings(texts: Sequence[str]) -> dict[str, Options]:
    """By policy the options of "chunked.tree=40"; several add up."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        policy, option, value = read_assignment(text, "--option")
        options = found.setdefault(policy, {})
        if options.setdefault(option, value) != value:
            raise ConfigurationError(
                f"--option gives {policy}.{option} two values, {options[option]} and {value}",
                hint=f"to compare them: --sweep {policy}.{option}={options[option]},{value}",
            )
    return {policy: tuple(options.items()) for policy, options in found.items()}
