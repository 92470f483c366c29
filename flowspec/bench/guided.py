"""Inputs that nobody should send, found by coverage: atheris keeps those that reach new code, and changes them further.

Three targets, each in a process of its own: the frames of a message, topology files, and conversations of clients and
the pipe with the coordinator's desk. What becomes of each input is counted as in `flowspec.bench.fuzz`; `inputs` there
counts every message of a conversation, `executions` the inputs that atheris made. Needs the extra `fuzz`; exit code 2
without it. The last line is one JSON object.

    python -m flowspec.bench.guided [--inputs N] [--seed S] [--targets NAME...] [--corpus DIRECTORY]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowspec.bench.guided_inputs import TARGETS
from flowspec.program import run_program

INPUTS = 1_000_000
SHARES = {"frames": 0.955, "topologies": 0.03, "clients": 0.015}
"""Of all executions. A conversation is one, of about twenty messages."""

MISSING = (
    "atheris is not installed, and without it nothing can be guided by coverage. It has packages for Linux and some "
    'versions of Python: pip install -c constraints.txt "flowspec[fuzz]"'
)
COVERAGE = re.compile(r"^#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)/")
RESULT = "RESULT "
LAST_LINES = 30
"""Of what a process printed, shown when it dies."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What became of the inputs of one target."""

    executions: int
    counted: dict[str, Any]
    """The values of its campaign; empty if its process died."""
    seconds: float
    coverage: int
    """Places in the code that were reached: branches, and outcomes of comparisons."""
    corpus: int
    """Inputs of which each reached something that the others do not."""

    @property
    def died(self) -> bool:
        """Killed by the alarm, for its memory, or by a crash below Python."""
        return not self.counted

    @property
    def met(self) -> bool:
        return bool(self.counted.get("met"))


@dataclass(frozen=True, slots=True)
class Guided:
    """All targets together."""

    targets: dict[str, TargetResult] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(each.met for each in self.targets.values())

    def total(self, name: str) -> int:
        return sum(each.counted.get(name, 0) for each in self.targets.values())

    def as_values(self) -> dict[str, object]:
        rejected: Counter[str] = Counter()
        for each in self.targets.values():
            rejected.update(each.counted.get("rejected", {}))
        return {
            "executions": sum(each.executions for each in self.targets.values()),
            **{name: self.total(name) for name in ("inputs", "accepted", "crashes", "hangs")},
            "rejected": dict(rejected),
            "died": [name for name, each in self.targets.items() if each.died],
            "targets": {name: asdict(each) for name, each in self.targets.items()},
            "met": self.met,
        }


def installed() -> bool:
    return find_spec("atheris") is not None


def guided(
    inputs: int = INPUTS,
    seed: int = 0,
    targets: Sequence[str] = tuple(SHARES),
    corpus: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Guided:
    """`inputs` executions, shared among the targets; `corpus` keeps what reached new code, for the next time."""
    whole = sum(SHARES[name] for name in targets)
    found = Guided()
    with tempfile.TemporaryDirectory(prefix="flowspec-fuzz-") as scratch:
        for name in targets:
            directory = (corpus or Path(scratch)) / name
            directory.mkdir(parents=True, exist_ok=True)
            found.targets[name] = _run(name, max(1, round(inputs * SHARES[name] / whole)), seed, directory, tell)
    return found


def _run(name: str, executions: int, seed: int, directory: Path, tell: Callable[[str], None]) -> TargetResult:
    command = [sys.executable, "-m", "flowspec.bench.guided_target", name, str(executions), str(seed), str(directory)]
    began = time.perf_counter()
    reader = _Reader(name, tell)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as fed:
        try:
            assert fed.stdout is not None
            for line in fed.stdout:
                reader.read(line.rstrip("\n"))
        finally:
            with contextlib.suppress(ProcessLookupError):
                fed.kill()
    if not reader.counted:
        tell(f"{name}: the process ended with {fed.returncode}; the last that it said:")
        for line in reader.last:
            tell(f"  {line}")
    seconds = round(time.perf_counter() - began, 1)
    return TargetResult(reader.executions, reader.counted, seconds, reader.coverage, reader.corpus)


class _Reader:
    """Reads what one process prints."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self.counted: dict[str, Any] = {}
        self.executions = self.coverage = self.corpus = 0
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._name = name
        self._tell = tell
        self._crashed = False

    def read(self, line: str) -> None:
        self.last.append(line[:2000])
        input_of_crash = self._crashed and line.startswith("  ")
        self._crashed = line.startswith("CRASH")
        if line.startswith(RESULT):
            self.counted = json.loads(line.removeprefix(RESULT))
            self.executions = self.counted["executions"]
            self._tell(f"{self._name}: {self.executions} executions, coverage {self.coverage}, {_brief(self.counted)}")
        elif self._crashed or input_of_crash:
            self._tell(line)
        elif match := COVERAGE.match(line):
            self.executions, self.coverage, self.corpus = int(match[1]), int(match[2]), int(match[4])
            if "pulse" in line:
                self._tell(f"{self._name}: {self.executions} executions, coverage {self.coverage}")


def _brief(counted: dict[str, Any]) -> str:
    return (
        f"{counted['accepted']} accepted, {sum(counted['rejected'].values())} refused, {counted['crashes']} crashes, "
        f"{counted['hangs']} hangs, slowest {counted['slowest_ms']:.0f} ms, +{counted['growth_bytes'] / 2**20:.1f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Let coverage find inputs that nobody should send.")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="executions of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(SHARES))
    parser.add_argument("--corpus", type=Path, help="a directory that keeps what was found, to begin with next time")
    given = parser.parse_args()
    if not installed():
        print(MISSING, file=sys.stderr)
        raise SystemExit(2)
    found = guided(given.inputs, given.seed, given.targets, given.corpus, lambda line: print(line, flush=True))
    print(json.dumps(found.as_values()))
    raise SystemExit(0 if found.met else 1)


if __name__ == "__main__":
    run_program(main)
