"""What came of a simulation: per session and for the whole pipe. Counts, and seconds of the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from flowspec.schedule.events import EmitTokens, FinishSession

if TYPE_CHECKING:
    from flowspec.tracing.trace import Trace


@dataclass(slots=True)
class SessionResult:
    """One request. `restarts` counts the certain tokens that had to go down the pipe by themselves to be certain of
    anything: the last of the prompt, and each that was sampled and not under way as a draft."""

    asked: float = 0.0
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    restarts: int = 1
    finish: FinishSession | None = None

    def emit(self, now: float, command: EmitTokens) -> None:
        if not self.tokens:
            self.first = now
        self.last = now
        self.tokens += command.tokens

    @property
    def rate(self) -> float:
        """Tokens per second after the first, as a running pipe's statistics have it."""
        span = self.last - self.first
        return (len(self.tokens) - 1) / span if span > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """`tokens_per_second` is one session's own rate (the mean of several), `throughput` that of all together."""

    sessions: int
    tokens: int
    """Written, in all sessions."""
    seconds: float
    """From the first request to the last token."""
    tokens_per_second: float
    throughput: float
    time_to_first_token: float
    """The mean over sessions, in seconds."""
    tokens_per_verdict: float
    tokens_per_round: float
    """Tokens written per certain token that had to be sent by itself: of a policy in rounds, what a round writes; of a
    continuous one what is written between two misses."""
    drafted: int
    accepted: int
    pruned: int
    segments: int
    cost: float
    """Tokens that a stage computed, the prompt's left out, per token written; the mean over stages."""
    occupancy: tuple[float, ...]
    """Per stage the share of the time that it computed."""
    drafter_occupancy: float
    draft_steps: int
    written: tuple[tuple[int, ...], ...]
    """Per session its tokens."""
    trace: Trace | None = None

    @classmethod
    def of(
        cls,
        sessions: Sequence[SessionResult],
        *,
        busy: Sequence[float],
        computed: Sequence[int],
        draft_busy: float,
        draft_steps: int,
        trace: Trace | None = None,
    ) -> SimulationResult:
        """All `sessions` must have finished."""
        ends = [session.finish for session in sessions if session.finish is not None]
        tokens = sum(len(session.tokens) for session in sessions)
        began, first = min(each.asked for each in sessions), min(each.first for each in sessions)
        last = max(each.last for each in sessions)
        seconds = last - began
        return cls(
            sessions=len(sessions),
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=sum(session.rate for session in sessions) / len(sessions),
            throughput=(tokens - 1) / (last - first) if last > first else 0.0,
            time_to_first_token=sum(session.first - session.asked for session in sessions) / len(sessions),
            tokens_per_verdict=tokens / max(1, sum(end.verdicts for end in ends)),
            tokens_per_round=tokens / sum(session.restarts for session in sessions),
            drafted=sum(end.drafted for end in ends),
            accepted=sum(end.accepted for end in ends),
            pruned=sum(end.pruned for end in ends),
            segments=sum(end.segments for end in ends),
            cost=sum(computed) / len(computed) / max(1, tokens),
            occupancy=tuple(min(1.0, each / seconds) if seconds > 0.0 else 0.0 for each in busy),
            drafter_occupancy=min(1.0, draft_busy / seconds) if seconds > 0.0 else 0.0,
            draft_steps=draft_steps,
            written=tuple(tuple(session.tokens) for session in sessions),
            trace=trace,
        )

    def as_values(self) -> dict[str, Any]:
        """Plain JSON values: all figures, without the text and the trace."""
        return {
            each.name: list(value) if isinstance(value := getattr(self, each.name), tuple) else value
            for each in fields(self)
            if each.name not in ("written", "trace")
        }
