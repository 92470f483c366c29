"""The pipelines that are measured: all nodes on this machine, as slow as the devices and links that are meant.

Or one that runs already, wherever its nodes are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

from flowspec.bench.named_drafter import drafter_section
from flowspec.bench.undisturbed import UndisturbedClient
from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.errors import ConfigurationError
from flowspec.synthetic.guesses import PAPER_TOKENS_PER_ROUND
from flowspec.topology import Topology
from flowspec.topology.profiles import Profile, load_profile
from flowspec.topology.topology import SYNTHETIC_MODEL


@dataclass(frozen=True, slots=True)
class Pipe:
    """A draft node and `stages` stages. Without a profile they are as fast as this machine is."""

    model: str = "demo"
    stages: int = 4
    profile: str | None = None
    rate_mbit: float | None = None
    """Of every link, in place of the profile's."""
    slow_stage: float = 1.0
    """How many times the time of the others the second stage takes (the first where there is one only)."""
    tokens_per_round: float | None = None
    """Of `chunked` at the paper's settings, with the synthetic model: how good the drafts are."""
    address: str | None = None
    """Of a pipeline that runs; the rest is then what it says of itself."""

    def __post_init__(self) -> None:
        if self.profile is None and (self.rate_mbit is not None or self.slow_stage != 1.0):
            raise ConfigurationError("link rates and slow stages are emulated: name a profile as well")
        if not 0.0 < self.slow_stage < inf:
            raise ConfigurationError(f"a stage cannot be {self.slow_stage:g} times slower", hint="for example 2")
        if self.model == SYNTHETIC_MODEL and self.profile is None:
            raise ConfigurationError("the synthetic model takes no time of its own: name a profile as well")

    @property
    def name(self) -> str:
        """E.g. "4 stages, paper-7b, 50 Mbit/s"."""
        parts = [f"{self.stages} stages", self.address or self.profile or "this machine"]
        if self.rate_mbit is not None:
            parts.append(f"{self.rate_mbit:g} Mbit/s")
        if self.slow_stage != 1.0:
            parts.append(f"one {self.slow_stage:g} times slower")
        if self.round_tokens != PAPER_TOKENS_PER_ROUND:
            parts.append(f"drafts of {self.round_tokens:g} a round")
        return ", ".join(parts)

    @property
    def round_tokens(self) -> float:
        """What a round of `chunked` is to write with the synthetic model."""
        return PAPER_TOKENS_PER_ROUND if self.tokens_per_round is None else self.tokens_per_round

    def topology(self, drafter: str = "auto") -> Topology:
        """On free ports, with the drafter of that name."""
        values: dict[str, Any] = {"drafter": drafter_section(drafter)}
        if self.model == SYNTHETIC_MODEL:
            values["synthetic"] = {"tokens_per_round": self.round_tokens}
        if self.profile is None:
            return Topology.local(self.model, self.stages, **values)
        profile = load_profile(self.profile)
        values["profile"] = self.profile
        if self.rate_mbit is not None:
            values["link"] = profile.link.model_dump(exclude_none=True) | {"rate_mbit": self.rate_mbit}
        topology = Topology.local(self.model, self.stages, **values)
        return topology if self.slow_stage == 1.0 else self._uneven(topology, profile)

    def _uneven(self, even: Topology, profile: Profile) -> Topology:
        nodes = even.as_values()["nodes"]
        times = {"base_ms": profile.stage.base_ms, "per_token_ms": profile.stage.per_token_ms}
        nodes[min(2, self.stages)]["emulate"] = {name: time * self.slow_stage for name, time in times.items()}
        return even.replace(nodes=nodes)


@asynccontextmanager
async def open_pipe(pipe: Pipe, drafter: str) -> AsyncIterator[Client | UndisturbedClient]:
    """A client of the pipe, whose processes live as long as the block does."""
    if pipe.address is not None:
        async with Client(pipe.address) as client:
            yield client
        return
    async with LocalCluster(topology=pipe.topology(drafter)) as cluster, cluster.client() as client:
        yield UndisturbedClient(client, cluster)


async def running_pipe(address: str) -> tuple[Pipe, str]:
    """The pipe at `address` and its drafter, as its coordinator tells them."""
    async with Client(address) as client:
        status = await client.status()
    return Pipe(model=status.model, stages=len(status.nodes), address=address), status.drafter


def link_rate(profile: str) -> float | None:
    """Mbit/s of a profile's links; None: unlimited, or no such profile here."""
    try:
        return load_profile(profile).link.rate_mbit
    except ConfigurationError:
        return None
