"""Runs a campaign: starts each pipe, asks every question of every contender in turn, and records each run at once.

What the file holds already is not run again, so a campaign that was interrupted goes on where it stopped. Knows no
processes and no topology files: whoever calls says how a pipe is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, Final, Protocol

from flowspec.bench.agreement import Agreement, Judge, Written
from flowspec.bench.matrix import Block, Contender, Job, Matrix, Round
from flowspec.bench.pipes import Pipe
from flowspec.bench.records import Log, Place, Record
from flowspec.client import Generation
from flowspec.errors import LimitExceeded, PipelineError
from flowspec.tracing.summary import summarise

WARM_UP_TOKENS: Final = 4
WARM_UP_PROMPT: Final = "What is written first is not measured."


class Asker(Protocol):
    """What is needed of a client."""

    async def generate(self, prompt: str, /, **options: Any) -> Generation:
        """The options are those of `flowspec.stream.Options`."""
        ...


OpenPipe = Callable[[Pipe, str], AbstractAsyncContextManager[Any]]
"""Pipe and drafter to an `Asker` of it, for as long as the block lasts."""


@dataclass(slots=True)
class Campaign:
    """One matrix on its way into one file."""

    matrix: Matrix
    log: Log
    open_pipe: OpenPipe
    judge: Judge
    tell: Callable[[str], None] = print
    place: Place = field(default_factory=Place.here)
    skipped: list[str] = field(default_factory=list)
    """Questions that are over a limit of the pipe, in words."""

    async def run(self) -> list[Record]:
        """Run what is missing; the records of the whole matrix, in its order."""
        found = {record.job: record for record in self.log.found}
        agreement = Agreement(self.judge)
        for record in self.log.found:
            agreement.remember(record.job, record.token_ids)
        wanted = list(self.matrix.jobs())
        missing = sum(job not in found for job in wanted)
        self.tell(f"{len(wanted)} runs, {len(wanted) - missing} of them recorded in {self.log.path}")
        elsewhere = Counter(str(found[job].place) for job in wanted if job in found and found[job].place != self.place)
        for place, count in elsewhere.items():
            self.tell(f"{count} of these were made with {place}; for new ones give another --output")
        for block in self.matrix.blocks():
            if any(job not in found for each in block.rounds for job in each.jobs):
                await self._block(block, found, agreement)
        return [found[job] for job in wanted if job in found]

    async def _block(self, block: Block, found: dict[Job, Record], agreement: Agreement) -> None:
        self.tell(f"{block.pipe.model}, {block.pipe.name}, drafter {block.drafter} ...")
        async with self.open_pipe(block.pipe, block.drafter) as client:
            for contender in self.matrix.contenders:
                await client.generate(WARM_UP_PROMPT, **options_of(contender, WARM_UP_TOKENS, False))
            for number, each in enumerate(block.rounds, start=1):
                await self._round(client, each, found, agreement, f"{number} of {len(block.rounds)}")

    async def _round(
        self, client: Asker, asked: Round, found: dict[Job, Record], agreement: Agreement, which: str
    ) -> None:
        missing = [job for job in asked.jobs if job not in found]
        speeds = []
        for job in missing:
            try:
                record = await self._ask(client, asked, job, agreement)
            except LimitExceeded as error:
                self.skipped.append(f"question {job.question} of {job.set}: {error.message}")
                self.tell(f"  {which}: skipped: {self.skipped[-1]}")
                return
            self.log.add(record)
            found[job] = record
            speeds.append(f"{job.contender.label} {record.pace.rate:.1f}")
        if missing:
            job = missing[0]
            self.tell(f"  {which}: {job.set} {job.question}, temperature {job.temperature:g}: {', '.join(speeds)} /s")

    async def _ask(self, client: Asker, asked: Round, job: Job, agreement: Agreement) -> Record:
        options = options_of(job.contender, job.new_tokens, job.chat) | ({"trace": True} if job.traced else {})
        generation = await client.generate(asked.question.prompt, temperature=job.temperature, seed=job.seed, **options)
        if generation.stats is None or len(generation.token_ids) != job.new_tokens:
            raise PipelineError(
                f"{job.contender.label} wrote {len(generation.token_ids)} tokens for question {job.question} of "
                f"{job.set}, not {job.new_tokens}, and ended with {generation.finish_reason!r}",
                hint="runs of different lengths cannot be compared",
            )
        if generation.stats.seconds <= 0.0:
            raise PipelineError(
                f"{job.contender.label} wrote all of its {job.new_tokens} tokens for question {job.question} of "
                f"{job.set} at once, so there is no speed to measure",
                hint="ask for more tokens, see --tokens",
            )
        return Record(
            job=job,
            token_ids=generation.token_ids,
            prompt_tokens=len(generation.prompt_token_ids),
            agrees=agreement.check(Written(job, generation.prompt_token_ids, generation.token_ids)),
            stats={name: value for name, value in asdict(generation.stats).items() if isinstance(value, int | float)},
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            place=self.place,
            stages_did=occupancy(generation) if job.traced else None,
        )


def occupancy(generation: Generation) -> dict[str, float] | None:
    """Shares of the stages' time that were useful, wasted and idle, means over the stages; None without a trace."""
    if generation.trace is None:
        return None
    stages = summarise(generation.trace).nodes[1:]
    return {name: fmean(getattr(stage, name) for stage in stages) for name in ("useful", "wasted", "idle")}


def options_of(contender: Contender, new_tokens: int, chat: bool) -> dict[str, Any]:
    """What a client is asked with: `new_tokens` tokens, EOS ignored, so that all runs are of one length."""
    options: dict[str, Any] = {"policy": contender.policy, "max_new_tokens": new_tokens, "ignore_eos": True}
    if contender.options:
        options["policy_options"] = dict(contender.options)
    if chat:
        options["chat"] = True
    return options
