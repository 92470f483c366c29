"""Did all contenders write the same tokens? A speed counts only if they did.

Two streams of one question may differ where two tokens are as good as equal: then both are compared with the model
alone, and every difference has to be a shown tie. The synthetic model has no ties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from flowspec.bench.matrix import Job
from flowspec.errors import PipelineError
from flowspec.topology.topology import SYNTHETIC_MODEL
from flowspec.wire.parameters import SamplingParameters

Asked = tuple[str, float, int, bool, str, str, str]


@dataclass(frozen=True, slots=True)
class Written:
    """A stream, and who wrote it."""

    job: Job
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Judge(Protocol):
    """Says in words why a stream is not the model's own; None when it is, ties included."""

    def fault(self, written: Written) -> str | None: ...


class WholeModelJudge:
    """Runs the whole model in this process, once per stream."""

    def __init__(self, dtype: str = "float32") -> None:
        self._dtype = dtype

    def fault(self, written: Written) -> str | None:
        if written.job.model == SYNTHETIC_MODEL:
            return "the synthetic model has one text per seed"
        from flowspec.model.check import check_generation

        sampling = SamplingParameters(temperature=written.job.temperature, seed=written.job.seed)
        report = check_generation(written.job.model, written.prompt, written.tokens, sampling, dtype=self._dtype)
        return report.text() if report.differences else None


class Agreement:
    """All streams of a campaign, by what was asked."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._longest: dict[Asked, Written] = {}
        """What streams are compared with; the first of those that are as long."""
        self._cleared: set[tuple[Asked, tuple[int, ...]]] = set()

    def remember(self, job: Job, tokens: tuple[int, ...]) -> None:
        """A stream from the file of an earlier run."""
        self._keep(Written(job, (), tokens))

    def check(self, written: Written) -> bool:
        """Whether it equals the longest stream so far for the same question, as far as both go.

        Raises `PipelineError` for a difference that is no shown tie.
        """
        first = self._longest.get(_asked(written.job), written)
        if all(one == other for one, other in zip(first.tokens, written.tokens, strict=False)):
            self._keep(written)
            return True
        # The file does not keep the prompt's tokens; they are the same.
        for stream in (replace(first, prompt=written.prompt), written):
            key = (_asked(stream.job), stream.tokens)
            if key not in self._cleared:
                self._refuse(stream, first, written, self._judge.fault(stream))
                self._cleared.add(key)
        return False

    def _keep(self, written: Written) -> None:
        known = self._longest.setdefault(_asked(written.job), written)
        if len(written.tokens) > len(known.tokens):
            self._longest[_asked(written.job)] = written

    @staticmethod
    def _refuse(stream: Written, first: Written, second: Written, fault: str | None) -> None:
        if fault is not None:
            raise PipelineError(
                f"{first.job.contender.label} and {second.job.contender.label} wrote different tokens for question "
                f"{stream.job.question} of {stream.job.set}; of {stream.job.contender.label}: {fault}",
                hint="speeds of different texts cannot be compared; this is a defect of flowspec",
            )


def _asked(job: Job) -> Asked:
    return (job.model, job.temperature, job.seed, job.chat, job.set, job.question, job.digest)
