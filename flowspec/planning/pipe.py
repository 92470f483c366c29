"""A pipe as the simulator knows it: how long stages, links and draft steps take. Plain numbers, in seconds and bytes.

Made of a profile, of a topology that emulates devices, or of time curves that nodes measured. Takes no time itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowspec.errors import ConfigurationError
from flowspec.schedule.events import LINK_TOKENS, PipeProfile, interpolate
from flowspec.topology.link_calendar import HEADER_BYTES

CURVE_TOKENS = (1, 2, 4, 8, 16, 32, 64)
"""Segment sizes of the time curves that a scheduler is told."""

MOST_TOKENS = 512
"""Times of segments up to this size are looked up; larger ones are computed."""

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage: (tokens, seconds) points, linear in between; `layers` is how often it may notice that work died."""

    curve: Curve
    layers: int = 8

    @classmethod
    def line(cls, base: float, per_token: float = 0.0, layers: int = 8) -> StageTime:
        """`base + per_token * tokens` seconds."""
        return cls(((1, base + per_token), (2, base + 2 * per_token)), layers)

    def of(self, tokens: int) -> float:
        return interpolate(self.curve, tokens)

    def slower(self, factor: float) -> StageTime:
        """The same stage on a device that takes `factor` times as long."""
        return replace(self, curve=tuple((tokens, seconds * factor) for tokens, seconds in self.curve))


@dataclass(frozen=True, slots=True)
class LinkTime:
    """One hop in one direction: it keeps order, and what it carries leaves one after the other at `rate`."""

    latency: float = 0.0
    """Seconds that a message is under way after its last byte has left."""
    rate: float | None = None
    """Bytes per second; None: unlimited."""
    message: float | None = None
    """Seconds of a message without hidden states; None: latency and header."""
    jitter: float = 0.0
    """Most seconds that a message may take longer; each draws its own, evenly."""
    token_bytes: int = 0
    """Of one token's hidden state."""

    def busy(self, tokens: int) -> float:
        """Seconds for which the link is taken by a segment whose hidden states of that many tokens travel along."""
        return (HEADER_BYTES + tokens * self.token_bytes) / self.rate if self.rate else 0.0

    def of(self, tokens: int) -> float:
        """Seconds of a message with hidden states of that many tokens, on an idle link."""
        if not tokens and self.message is not None:
            return self.message + self.jitter / 2
        return self.busy(tokens) + self.latency + self.jitter / 2


@dataclass(frozen=True, slots=True)
class DraftTime:
    """One step of the drafter, by the number of tokens that it expands."""

    base: float = 0.0
    per_token: float = 0.0

    def of(self, tokens: int) -> float:
        return self.base + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class Overheads:
    """What software costs beside the devices' time, in seconds: nothing, unless it is to be predicted too."""

    message: float = 0.0
    """Of each message on its way, beside its link."""
    segment: float = 0.0
    """Of each segment at each stage, beside its layers."""
    decision: float = 0.0
    """Of each event at the coordinator, one after the other."""
    step: float = 0.0
    """Of each step of the drafter."""


NO_OVERHEADS = Overheads()


@dataclass(frozen=True, slots=True)
class SimulatedPipe:
    """Stages in pipe order, `len(stages) + 1` links (coordinator -> stage 1 first, tail -> coordinator last)."""

    stages: tuple[StageTime, ...]
    links: tuple[LinkTime, ...]
    draft: DraftTime = DraftTime()
    cores: int | None = None
    """Cores that all stages and the drafter share; None: each has its own."""
    returns: tuple[LinkTime, ...] = ()
    """Per stage its way to the coordinator; empty: all as the tail's."""

    def __post_init__(self) -> None:
        if not self.stages or len(self.links) != len(self.stages) + 1:
            raise ConfigurationError(
                f"a pipe of {len(self.stages)} stages and {len(self.links)} links",
                hint="it has at least one stage, and a link before each and one behind the last",
            )

    def way_back(self, stage: int) -> LinkTime:
        """From a stage to the coordinator."""
        return self.returns[stage] if self.returns else self.links[-1]

    @classmethod
    def even(
        cls, stages: int, stage: StageTime, link: LinkTime | None = None, draft: DraftTime | None = None
    ) -> SimulatedPipe:
        """Stages alike, links alike."""
        return cls((stage,) * stages, (link or LinkTime(),) * (stages + 1), draft or DraftTime())

    def profile(self) -> PipeProfile:
        """What the nodes of this pipe would measure, and tell their scheduler."""
        curves = tuple(tuple((tokens, stage.of(tokens)) for tokens in CURVE_TOKENS) for stage in self.stages)
        # Probes tell the time of messages, bytes of hidden states are added between stages: as a running pipe does it.
        probe = sum(link.of(0) for link in self.links) / len(self.links)
        hidden = [LINK_TOKENS * link.token_bytes / link.rate if link.rate else 0.0 for link in self.links]
        hidden[0] = hidden[-1] = 0.0
        shared = ((self.cores, tuple(range(len(curves))), curves),) if self.cores else ()
        return PipeProfile(
            curves, tuple(probe + busy for busy in hidden), shared, bool(self.cores), carrying=tuple(hidden)
        )
