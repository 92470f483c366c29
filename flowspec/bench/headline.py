"""The headline figures: real processes, sockets and schedulers on emulated devices, with the model without weights.

Its drafts are as good as those of the paper's set-up: `chunked` at the paper's settings writes 5.4 tokens a round. Who
is compared with whom under which conditions is said here; running, ratios and the simulator are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from flowspec.bench.agreement import Judge
from flowspec.bench.comparison import Comparison, compare
from flowspec.bench.efficiency import (
    Efficiency,
    efficiency_of,
    fastest,
    prediction_of,
    software_of,
    typical_seed,
)
from flowspec.bench.matrix import Contender, Matrix
from flowspec.bench.pipes import Pipe
from flowspec.bench.questions import QuestionSet, read_set
from flowspec.bench.records import Log, Record
from flowspec.bench.runner import Campaign, OpenPipe
from flowspec.schedule.options import read_options
from flowspec.topology.topology import SYNTHETIC_MODEL

PAPER: Final = "paper_7b"
TWO: Final = "two_stages"
"""Whose runs of `autoregressive` tell what software takes; the speed of all others is predicted with that."""
OPPONENTS: Final = ("flowspec", "chunked", "pipedec", "autoregressive")
EVERYBODY: Final = (*OPPONENTS, "pruned", "lockstep")
GRIDS: Final = {
    "chunked": {"tree": (32, 48, 64, 80, 120), "chunks": (3, 4, 5, 8), "depth": (6, 8)},
    "pipedec": {"layer": (8, 12, 16, 24, 32), "top_k": (4, 8, 16)},
}
"""What is swept: the simulator tries every combination, the best of them are measured."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    questions: int
    new_tokens: int
    plain_tokens: int
    """Of `autoregressive`, whose speed on emulated devices does not depend on the text."""
    finalists: int
    """Of each sweep's grid, measured for real; 0: nothing is swept."""
    everybody: bool
    """`pruned` and `lockstep` take part as well, where the table of the paper has them."""


FULL: Final = Extent(questions=5, new_tokens=96, plain_tokens=16, finalists=2, everybody=True)
QUICK: Final = Extent(questions=3, new_tokens=44, plain_tokens=8, finalists=0, everybody=False)


@dataclass(frozen=True, slots=True)
class Section:
    """One pipe, and who is compared on it."""

    name: str
    pipe: Pipe
    policies: tuple[str, ...]
    swept: bool = False


def sections_of(extent: Extent) -> tuple[Section, ...]:
    """What the headline is about, in the order of measuring."""
    seven = Pipe(SYNTHETIC_MODEL, 4, "paper-7b")
    return (
        Section(PAPER, seven, EVERYBODY if extent.everybody else OPPONENTS, swept=extent.finalists > 0),
        Section("eight_stages", replace(seven, stages=8), OPPONENTS),
        Section("slow_link", Pipe(SYNTHETIC_MODEL, 4, "slow-link"), OPPONENTS),
        Section("uneven_stages", replace(seven, slow_stage=2.0), ("flowspec", "chunked", "autoregressive")),
        Section(TWO, replace(seven, stages=2), ("flowspec", "chunked", "autoregressive")),
    )


async def measure(
    extent: Extent, output: Path, open_pipe: OpenPipe, judge: Judge, tell: Callable[[str], None]
) -> tuple[dict[str, Any], list[Record]]:
    """The JSON object and the runs behind it."""
    questions = replace(read_set("chat"), questions=read_set("chat").questions[: extent.questions])
    values: dict[str, Any] = {}
    efficiencies: dict[str, Efficiency] = {}
    everything: list[Record] = []
    runs: dict[str, list[Record]] = {}
    log = Log(output)
    seed = typical_seed(sections_of(extent)[0].pipe, questions, extent.new_tokens)
    for section in sections_of(extent):
        contenders = _contenders(section, extent, questions, tell)
        matrix = Matrix((section.pipe,), (questions,), contenders, new_tokens=extent.new_tokens, seed=seed)
        records = await Campaign(matrix, log, open_pipe, judge, tell).run()
        everything += records
        (found,) = compare(records)
        runs[section.name] = [each for each in records if not each.job.swept]
        efficiency = efficiency_of(section.pipe, runs[section.name])
        values[section.name] = _section(found, efficiency)
        if section.pipe.profile == "paper-7b" and section.pipe.slow_stage == 1.0:
            efficiencies[str(section.pipe.stages)] = efficiency
    pipes = {section.name: section.pipe for section in sections_of(extent)}
    software = software_of(pipes[TWO], runs[TWO])
    for name, pipe in pipes.items():
        predicted = prediction_of(pipe, runs[name], software).as_values()
        values[name] |= predicted
        values[name]["temperature_0"] = values[name]["temperature_0"] | predicted
    values["software_ms_per_message"] = software.message * 1e3
    values["seed"] = seed
    values["measured_with"] = sorted({str(record.place) for record in everything})
    values["runtime_efficiency"] = {
        stages: efficiency.of("flowspec") for stages, efficiency in sorted(efficiencies.items())
    }
    return values, everything


def _contenders(
    section: Section, extent: Extent, questions: QuestionSet, tell: Callable[[str], None]
) -> tuple[Contender, ...]:
    found = [
        Contender(policy, new_tokens=extent.plain_tokens if policy == "autoregressive" else None)
        for policy in section.policies
    ]
    for policy, grid in GRIDS.items() if section.swept else ():
        tell(f"{policy}: the simulator looks for its best options ...")
        options = [
            tuple((name, str(value)) for name, value in zip(grid, values, strict=True))
            for values in product(*grid.values())
        ]
        # The settings themselves take part anyway.
        others = [each for each in options if read_options(policy, each) != read_options(policy)]
        best = fastest(section.pipe, policy, others, extent.finalists)
        found += [Contender(policy, each, swept=True) for each in best]
    return tuple(found)


def _section(found: Comparison, efficiency: Efficiency) -> dict[str, Any]:
    """The figures of a section; those at temperature 0 stand under that name as well.

    The synthetic model writes one text per seed, whatever the temperature.
    """
    values = figures(found) | efficiency.as_values()
    return {"condition": found.condition.title, **values, "temperature_0": values}


def figures(found: Comparison, fast: str = "flowspec") -> dict[str, Any]:
    """How many times as fast as each other policy `fast` is, with intervals, and all speeds; plain JSON values."""
    ours = found.standard(fast)
    assert ours is not None
    values: dict[str, Any] = {}
    policies = dict.fromkeys(who.policy for who in found.contenders if who.policy != fast)
    for policy in policies:
        rivals = {f"vs_{policy}": found.standard(policy), f"vs_{policy}_best": found.best(policy)}
        for name, rival in rivals.items():
            if rival is not None:
                ratio = found.ratio(ours, rival)
                values[name] = ratio.value
                values[f"{name}_ci"] = ratio.interval
                if name.endswith("_best"):
                    values[f"{policy}_best"] = dict(rival.options)
    standards = [who for policy in (fast, *policies) if (who := found.standard(policy)) is not None]
    values["tokens_per_second"] = {who.policy: found.rate(who) for who in standards}
    values["tokens_per_verdict"] = {who.policy: found.acceptance(who)[1] for who in standards}
    return values


def lines_of(values: dict[str, Any], width: int = 80) -> Sequence[str]:
    """The figures for people: a line per section, what it was, and the ratios."""
    lines = []
    for name, section in values.items():
        if not isinstance(section, dict) or "condition" not in section:
            continue
        lines.append(f"{name}: {section['condition']}"[:width])
        rates = section["tokens_per_second"]
        lines.append("  tokens/s: " + ", ".join(f"{policy} {rate:.2f}" for policy, rate in rates.items()))
        for key, ratio in section.items():
            if key.startswith("vs_") and not key.endswith("_ci"):
                between = section[f"{key}_ci"]
                shown = f" ({between[0]:.2f} to {between[1]:.2f})" if between else ""
                lines.append(f"  {key.replace('_', ' ')}: {ratio:.2f}x{shown}")
        predicted = section.get("predicted_tokens_per_second", {})
        for policy, rate in predicted.items():
            off = section["predicted_deviation"][policy]
            lines.append(f"  {policy}: predicted {rate:.2f}, measured {rates[policy]:.2f} ({off:+.1%})")
    efficiency = values.get("runtime_efficiency", {})
    for stages, share in efficiency.items():
        lines.append(f"{stages} stages: {share:.1%} of what the simulator says without any software's time")
    return lines
