"""How exact emulated devices and links are, in real processes: nominal and measured times, from traces.

    python -m flowspec.bench.emulation [--profile paper-7b] [--stages 4] [--tokens 64] [--json]

A stage's time is from when a segment was there and the stage was free until the result was there, with all that Python
does in between; a link's is from when a message was given to it until the next node had it. What the emulation adds or
the runtime costs shows as a ratio above 1. The last lines compare tokens per second with what the simulator says, where
software takes no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flowspec.cluster import LocalCluster
from flowspec.planning.language import SyntheticLanguage
from flowspec.planning.simulator import simulate
from flowspec.planning.sources import pipe_of_profile
from flowspec.program import run_program
from flowspec.runtime.emulated_link import LinkSchedule
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.runtime.loop import run
from flowspec.synthetic.calibration import quality_for
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND
from flowspec.synthetic.text import mix
from flowspec.topology import Topology
from flowspec.topology.link_calendar import HEADER_BYTES
from flowspec.topology.profiles import load_profile
from flowspec.tracing.spans import Span
from flowspec.tracing.trace import Trace

POLICIES = ("autoregressive", "chunked", "flowspec")
PROMPT = tuple(range(64))
SEED = 5


@dataclass(frozen=True, slots=True)
class Precision:
    """Milliseconds; `ratio` is the median of measured over nominal, `ratio_p90` its 90th percentile."""

    what: str
    count: int
    nominal: float
    measured: float
    measured_p90: float
    ratio: float
    ratio_p90: float

    @classmethod
    def of(cls, what: str, pairs: Sequence[tuple[float, float]]) -> Precision:
        """`pairs` are (nominal, measured) in seconds."""
        measured = sorted(each for _, each in pairs)
        ratios = sorted(each / nominal for nominal, each in pairs)
        last = int(0.9 * (len(pairs) - 1))
        return cls(
            what,
            len(pairs),
            statistics.median(nominal for nominal, _ in pairs) * 1e3,
            statistics.median(measured) * 1e3,
            measured[last] * 1e3,
            statistics.median(ratios),
            ratios[last],
        )

    def __str__(self) -> str:
        return (
            f"  {self.what:<24}{self.count:>6}{self.nominal:>10.2f}{self.measured:>10.2f}{self.measured_p90:>9.2f}"
            f"{self.ratio:>9.3f}{self.ratio_p90:>9.3f}"
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one request, and of the same one as simulated."""

    policy: str
    measured: float
    simulated: float

    def __str__(self) -> str:
        ratio = self.measured / self.simulated
        return f"  {self.policy:<24}{self.measured:>16.3f}{self.simulated:>12.3f}{ratio:>18.3f}"


def stage_times(trace: Trace, topology: Topology) -> dict[str, list[tuple[float, float]]]:
    """By stage: (nominal, measured) seconds of the segments that were computed to their end."""
    found: dict[str, list[tuple[float, float]]] = {}
    for stage in topology.stages:
        device = EmulatedDevice.like(stage.emulate)
        arrivals = {span.number("ticket"): span.start for span in _spans(trace, stage.name, "queued")}
        free, pairs = 0.0, []
        for span in _spans(trace, stage.name, "segment"):
            begins = max(free, arrivals.get(span.number("ticket"), span.start))
            computed = span.number("computed")
            if computed > 0 and span.text("outcome") in ("whole", "pruned") and device.emulates:
                pairs.append((device.of(computed), span.end - begins))
            free = span.end
        found[stage.name] = pairs
    return found


def draft_times(trace: Trace, topology: Topology) -> list[tuple[float, float]]:
    """(nominal, measured) seconds of the drafter's steps."""
    device = EmulatedDevice.of_drafter(topology.draft_node.emulate, layers=0)  # it is synthetic
    free, pairs = 0.0, []
    for span in sorted(_spans(trace, topology.draft_node.name, "drafted"), key=lambda span: span.end):
        if device.emulates:
            pairs.append((device.of(span.number("expanded")), span.end - max(free, span.start)))
        free = span.end
    return pairs


def link_times(trace: Trace, topology: Topology) -> dict[str, list[tuple[float, float]]]:
    """By hop: (nominal, measured) seconds of segments under way; where links jitter, the nominal time is the mean."""
    hops: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in trace.spans:
        if span.kind == "transfer":
            hops[span.node, span.text("to")].append(span)
    found = {}
    for (origin, target), spans in hops.items():
        link = topology.link_emulation(origin, target)
        if link is None:
            continue
        schedule = LinkSchedule(link.model_copy(update={"jitter_ms": 0.0, "bytes_per_token": None}))
        pairs = []
        for span in sorted(spans, key=lambda span: span.start):
            hidden = max(0, span.number("bytes") - HEADER_BYTES)
            between = topology.draft_node.name not in (origin, target)
            arrival = schedule.arrival(span.start, 1 if hidden and between else 0, hidden if between else 0)
            pairs.append((arrival - span.start + link.jitter / 2, span.duration))
        found[f"{origin} > {target}"] = [pair for pair in pairs if pair[0] > 0]
    return found


def _spans(trace: Trace, node: str, kind: str) -> Iterable[Span]:
    return (span for span in trace.spans if span.node == node and span.kind == kind)


async def measure(profile: str, stages: int, tokens: int) -> tuple[list[Precision], list[Speed]]:
    """Run every policy once on a synthetic pipe that emulates `profile`."""
    topology = Topology.local(
        "synthetic", stages, profile=profile, synthetic={"tokens_per_round": PAPER_TOKENS_PER_ROUND}
    )
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rates: dict[str, float] = {}
    language = SyntheticLanguage(quality_for(PAPER_TOKENS_PER_ROUND), mix(0, SEED))
    async with LocalCluster(topology=topology) as cluster, cluster.client() as client:
        for policy in POLICIES:
            asked: dict[str, Any] = {
                "prompt_token_ids": list(PROMPT),
                "policy": policy,
                "seed": SEED,
                "max_new_tokens": tokens,
            }
            done = await client.generate(**asked, trace=True)
            assert done.trace is not None
            for name, found in stage_times(done.trace, topology).items():
                pairs[name] += found
            pairs["draft step"] += draft_times(done.trace, topology)
            for name, found in link_times(done.trace, topology).items():
                pairs[name] += found
            untraced = await client.generate(**asked)
            assert untraced.stats is not None
            rates[policy] = untraced.stats.tokens_per_second
    pipe = pipe_of_profile(load_profile(profile), stages)
    speeds = []
    for policy, rate in rates.items():
        simulated = simulate(pipe, policy, language=language, tokens=tokens, prompt=len(PROMPT))
        speeds.append(Speed(policy, rate, simulated.tokens_per_second))
    return [Precision.of(name, each) for name, each in pairs.items() if each], speeds


def main() -> None:
    parser = argparse.ArgumentParser(description="How exact emulated devices and links are.")
    parser.add_argument("--profile", default="paper-7b")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    precisions, speeds = run(measure(given.profile, given.stages, given.tokens))
    if given.json:
        print(
            json.dumps(
                {
                    "precision": [dataclasses.asdict(each) for each in precisions],
                    "speed": [dataclasses.asdict(each) for each in speeds],
                }
            )
        )
        return
    print(f"{given.profile}, {given.stages} stages, milliseconds")
    print(f"  {'':<24}{'count':>6}{'nominal':>10}{'measured':>10}{'p90':>9}{'ratio':>9}{'p90':>9}")
    print("\n".join(map(str, precisions)))
    print(f"\n  {'tokens per second':<24}{'measured':>16}{'simulated':>12}{'of simulated':>18}")
    print("\n".join(map(str, speeds)))


if __name__ == "__main__":
    run_program(main)
