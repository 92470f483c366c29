"""What a soak found: how its requests ended, whether the memory of its processes grew, what was left behind. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flowspec.bench.soak_samples import Sample
from flowspec.bench.trend import ALLOWED_BYTES, Trend, trend

WARM_UP_SHARE: Final = 0.2
"""Of the time, before memory counts."""

Series = Sequence[tuple[float, Sample]]
"""Samples of one process with the second at which each was taken."""


@dataclass(frozen=True, slots=True)
class Course:
    """What one process held from the end of the warm-up to the end of the load."""

    memory: Trend
    """In bytes."""
    pss: tuple[int, int]
    """Bytes at the beginning and at the end."""
    files: int
    """Most at once."""
    threads: int
    """Most at once."""
    requests: int
    """That ended meanwhile, at all of them together."""

    @classmethod
    def of(cls, series: Series, requests: int) -> Course:
        """Raises `ValueError` when there are fewer than two samples."""
        return cls(
            memory=trend([(second, sample.memory) for second, sample in series]),
            pss=(series[0][1].pss, series[-1][1].pss),
            files=max(sample.files for _, sample in series),
            threads=max(sample.threads for _, sample in series),
            requests=requests,
        )

    @property
    def finest_leak(self) -> float:
        """Bytes per request that would just have been too much."""
        return ALLOWED_BYTES / max(1, self.requests)

    def as_values(self) -> dict[str, float]:
        memory = self.memory
        return {
            "after_warm_up_mb": round(memory.begin / 1e6, 2),
            "end_mb": round(memory.end / 1e6, 2),
            "slope_mb_per_hour": round(memory.slope * 3600 / 1e6, 2),
            "grown_mb": round(memory.grown / 1e6, 2),
            "peak_over_mb": round((memory.most - memory.begin) / 1e6, 2),
            "pss_after_warm_up_mb": round(self.pss[0] / 1e6, 1),
            "pss_end_mb": round(self.pss[1] / 1e6, 1),
            "finest_leak_bytes": round(self.finest_leak),
        }


@dataclass(slots=True)
class Outcome:
    """Of a whole soak. `ended` has the values of its JSON object that count requests."""

    minutes: float
    ended: Mapping[str, int]
    courses: Mapping[str, Course]
    files: Mapping[str, tuple[int, int]]
    """Per process before the load and after it, when nothing runs."""
    threads: Mapping[str, tuple[int, int]]
    by_policy: Mapping[str, int]
    by_end: Mapping[str, int]
    """Exact ones by the reason for which they ended."""
    held_up: int
    """How often this process was held up, so that nothing could be expected of anybody."""
    leaks: list[str] = field(default_factory=list)

    @property
    def growing(self) -> list[str]:
        """Processes whose memory is not flat."""
        return [name for name, course in self.courses.items() if not course.memory.flat]

    @property
    def sound(self) -> bool:
        failed = sum(self.ended[key] for key in ("wrong", "errors", "hung"))
        return not (failed or self.leaks or self.growing) and self.ended["exact"] > 0

    def as_values(self) -> dict[str, Any]:
        return {
            "minutes": round(self.minutes, 2),
            **self.ended,
            "memory": {name: course.as_values() for name, course in self.courses.items()},
            "growing": self.growing,
            "files": _columns(self.files, {name: course.files for name, course in self.courses.items()}),
            "threads": _columns(self.threads, {name: course.threads for name, course in self.courses.items()}),
            "leaked": len(self.leaks),
            "by_policy": dict(sorted(self.by_policy.items())),
            "by_end": dict(sorted(self.by_end.items())),
            "held_up": self.held_up,
        }

    def table(self) -> list[str]:
        """For people."""
        heading = f"{'process':9}{'after warm-up':>14}{'end':>8}{'per hour':>10}{'grown':>7}{'peak':>7}{'PSS':>13}"
        lines = ["MB of memory, open files and threads (most)", f"{heading}   {'files':17}threads"]
        for name, course in self.courses.items():
            memory = course.memory
            pss = f"{course.pss[0] / 1e6:.0f} -> {course.pss[1] / 1e6:.0f}"
            lines.append(
                f"{name:9}{memory.begin / 1e6:14.1f}{memory.end / 1e6:8.1f}{memory.slope * 3600 / 1e6:+10.2f}"
                f"{memory.grown / 1e6:+7.2f}{(memory.most - memory.begin) / 1e6:+7.2f}{pss:>13}"
                f"   {_ends(self.files[name], course.files):17}{_ends(self.threads[name], course.threads)}"
            )
        return lines


def _ends(ends: tuple[int, int], most: int) -> str:
    return f"{ends[0]} -> {ends[1]} ({most})"


def _columns(ends: Mapping[str, tuple[int, int]], most: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {name: {"before": ends[name][0], "most": most[name], "end": ends[name][1]} for name in ends}
