"""One client's request while it is being served: its text, its figures. Knows no pipe and no socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowspec.model.text import TextStream
from flowspec.schedule.events import FinishSession
from flowspec.schedule.options import PolicyOptions
from flowspec.wire.codec import INT_MAX
from flowspec.wire.messages import Chunk, Finished, GenerationStats, SessionStatus
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
    options: PolicyOptions
    """Of the policy."""
    trace: bool = False
    resume: tuple[int, ...] = ()
    """Tokens of the output that the client has already."""


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
    epoch: int = 0
    """In which its session was opened last."""
    unacknowledged: set[str] = field(default_factory=set)
    """Stages that have not acknowledged that yet."""
    trouble: str = ""
    """Why it last began again because of a stage's word."""

    def __post_init__(self) -> None:
        """What the client has had is part of the text, and not sent again."""
        self.text.push(self.admitted.resume)
        self.tokens = self.text.tokens

    @property
    def over(self) -> str | None:
        """Why the output is complete with what the client has already; None when more may come."""
        had = self.admitted.resume
        if self.stopped:
            return "stop"
        if had and had[-1] in self.admitted.eos:
            return "eos"
        return "length" if len(had) >= self.admitted.max_new_tokens else None

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

    def status(self, now: float) -> SessionStatus:
        prompt = len(self.admitted.prompt)
        return SessionStatus(self.session, self.admitted.policy, prompt, self.tokens, now - self.asked)

    def rest(self) -> Chunk | None:
        """Text that was held back because it might have begun a stop string or a character."""
        text = "" if self.stopped else self.text.finish()
        return Chunk(self.admitted.request, self.tokens, text, (), ()) if text else None

    def finished(self, end: FinishSession) -> Finished:
        """With the figures of what was written here, and the number of tokens that were there before."""
        first = self.first if self.first is not None else self.asked
        seconds = (self.last if self.last is not None else first) - first
        written = self.tokens - len(self.admitted.resume)
        return Finished(
            self.admitted.request,
            # The scheduler knows no text: it may have come to a limit with the tokens that completed a stop string.
            "stop" if self.stopped else end.reason,
            GenerationStats(
                new_tokens=self.tokens,
                seconds=seconds,
                tokens_per_second=(written - 1) / seconds if seconds > 0 else 0.0,
                time_to_first_token=first - self.asked,
                accepted_per_verdict=written / end.verdicts if end.verdicts else 0.0,
                verdicts=end.verdicts,
                drafted=end.drafted,
                accepted=self.drafted_tokens,
                pruned=end.pruned,
                segments=end.segments,
                link_bytes=min(self.link_bytes, INT_MAX),
                restarts=end.epoch,
                resumed=len(self.admitted.resume),
            ),
        )
