"""One client's request while it is being served: its text, its figures. Knows no pipe and no socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowspec.model.text import TextStream
from flowspec.schedule.events import FinishSession
from flowspec.wire.messages import Chunk, Finished, GenerationStats
from flowspec.wire.parameters import SamplingParameters


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that passed all checks: what its session needs."""

    request: str
    peer: bytes
    prompt: tuple[int, ...]
    sampling: SamplingParameters
    max_new_tokens: int
    stop: tuple[str, ...]
    eos: frozenset[int]
    """Tokens that end the session; empty when EOS is ignored."""
    policy: str
    row_limit: int


@dataclass(slots=True)
class Request:
    """`asked`, `first` and `last` are times of one monotonic clock in seconds."""

    admitted: Admitted
    session: str
    text: TextStream
    asked: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    drafted_tokens: int = 0
    link_bytes: int = 0
    taps: tuple[int, ...] = ()
    """Hidden states of accepted tokens that its drafter reads."""
    unacknowledged: set[str] = field(default_factory=set)
    """Stages that have not acknowledged the session yet."""

    @property
    def stopped(self) -> bool:
        """A stop string was completed: nothing after it belongs to the output."""
        return self.text.stopped

    def push(self, tokens: tuple[int, ...], drafted: tuple[bool, ...], now: float) -> Chunk | None:
        """Take tokens that are final; returns what the client may see of them, None when nothing is left of them."""
        offset = self.tokens
        text = self.text.push(tokens)
        kept = self.text.tokens - offset
        if kept == 0:
            return None
        self.first = now if self.first is None else self.first
        self.last = now
        self.tokens = self.text.tokens
        self.drafted_tokens += sum(drafted[:kept])
        return Chunk(self.admitted.request, offset, text, tokens[:kept], drafted[:kept])

    def rest(self) -> Chunk | None:
        """Text that was held back because it might have begun a stop string or a character."""
        text = "" if self.stopped else self.text.finish()
        return Chunk(self.admitted.request, self.tokens, text, (), ()) if text else None

    def finished(self, end: FinishSession) -> Finished:
        first = self.first if self.first is not None else self.asked
        seconds = (self.last if self.last is not None else first) - first
        return Finished(
            self.admitted.request,
            end.reason,
            GenerationStats(
                new_tokens=self.tokens,
                seconds=seconds,
                tokens_per_second=(self.tokens - 1) / seconds if seconds > 0 else 0.0,
                time_to_first_token=first - self.asked,
                accepted_per_verdict=self.tokens / end.verdicts if end.verdicts else 0.0,
                verdicts=end.verdicts,
                drafted=end.drafted,
                accepted=self.drafted_tokens,
                pruned=end.pruned,
                segments=end.segments,
                link_bytes=self.link_bytes,
            ),
        )
