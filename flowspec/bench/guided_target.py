"""One target of `flowspec.bench.guided`, in a process of its own, which atheris ends as it likes.

    python -m flowspec.bench.guided_target TARGET INPUTS SEED DIRECTORY

DIRECTORY is the corpus: seeds are put in it, and what reaches new code is left in it. Prints what libFuzzer prints, and
at the end one line with `RESULT`.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType

import atheris

from flowspec.bench.fuzz import Campaign, memory_bytes
from flowspec.bench.guided import RESULT
from flowspec.bench.guided_inputs import TARGETS, Target

ALARM_SECONDS = 300
"""After which an input that does not end is given up, by the clock on the wall; far more than a hang takes of
computing, so that a busy machine cannot be taken for one."""

MOST_MB = 3000
"""Of memory in use: more ends the process."""


class Feeder:
    """Between atheris and a target: counts executions, and notes memory at an early moment."""

    def __init__(self, target: Target, inputs: int) -> None:
        self._target = target
        self._early_at = inputs // 5
        self._early = 0
        self.executions = 0

    def feed(self, data: bytes) -> None:
        self._target.feed(data)
        self.executions += 1
        if self.executions == self._early_at:
            self._early = _memory_in_use()

    def vary(self, data: bytes, most: int, seed: int) -> bytes:
        """A third of all changes know the form of the input; libFuzzer makes the others, byte by byte."""
        if seed % 3:
            return bytes(atheris.Mutate(data, most))
        self._target.mutator.random.seed(seed)
        return self._target.vary(data)[:most]

    def result(self) -> dict[str, object]:
        campaign = self._target.campaign
        campaign.growth_bytes = max(0, _memory_in_use() - self._early)
        return campaign.as_values() | {"executions": self.executions}


def _memory_in_use() -> int:
    gc.collect()
    return memory_bytes()


def instrument(modules: Iterable[str]) -> int:
    """Let the branches of all functions of these modules, and of the codecs of messages, guide; how many these are."""
    below = tuple(modules)
    found = [each for each in gc.get_objects() if type(each) is FunctionType and _is_below(each, below)]
    for each in found:
        atheris.instrument_func(each)
    return len(found)


def _is_below(function: FunctionType, modules: tuple[str, ...]) -> bool:
    if function.__code__.co_filename.startswith("<codec of "):
        return True
    name = function.__module__ or ""
    return any(name == each or name.startswith(f"{each}.") for each in modules)


def run_target(name: str, inputs: int, seed: int, directory: Path) -> None:
    """Does not return: atheris leaves the process."""
    logging.getLogger("flowspec").setLevel(logging.CRITICAL)
    target = TARGETS[name](Campaign(seed), seed)
    for number, data in enumerate(target.seeds()):
        (directory / f"seed-{number}").write_bytes(data[: target.most_bytes])
        # So that whatever an input makes it import is there to be instrumented, and counts as no growth.
        target.feed(data[: target.most_bytes])
    target.campaign = Campaign(seed)
    functions = instrument(target.modules)
    print(f"{name}: {functions} functions instrumented", flush=True)
    feeder = Feeder(target, inputs)
    options = {
        "atheris_runs": inputs,
        "max_len": target.most_bytes,
        # Here, 0 means another one each time.
        "seed": seed + 1,
        "timeout": ALARM_SECONDS,
        "rss_limit_mb": MOST_MB,
        "detect_leaks": 0,
        "artifact_prefix": f"{directory.parent}/{name}-",
    }
    arguments = [sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(directory)]
    atheris.Setup(arguments, feeder.feed, custom_mutator=feeder.vary)
    try:
        atheris.Fuzz()
    finally:
        print(RESULT + json.dumps(feeder.result()), flush=True)


if __name__ == "__main__":
    run_target(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
