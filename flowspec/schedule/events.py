"""The vocabulary between the deciding machines and whatever carries their decisions out.

Events are what happened (past tense), commands are what to do (imperative). `Scheduler.handle(event)` returns commands;
the runtime, a simulator and the tests all drive the very same objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from flowspec.schedule.options import PolicyOptions
from flowspec.wire.messages import DraftTokens


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class Command:
    """Base of all commands."""


LINK_TOKENS = 16
"""Size of the segment for which the times of links are told."""


@dataclass(frozen=True, slots=True)
class PipeProfile:
    """What a policy knows about the pipe: measured, never guessed. Times in seconds.

    `stage_seconds[n]` below is per stage a list of (tokens, seconds) points, linear in between.
    """

    stages: tuple[tuple[tuple[int, float], ...], ...]
    """Per stage, in pipe order: the time curve of a segment."""
    links: tuple[float, ...] = ()
    """Per hop, coordinator -> stage 1 first and tail -> coordinator last: seconds for `LINK_TOKENS` tokens."""
    shared: tuple[tuple[int, tuple[int, ...], tuple[tuple[tuple[int, float], ...], ...]], ...] = ()
    """Machines that hold several nodes: (cores, indices of their stages, their work curves without emulation)."""
    drafter_shares: bool = False
    """The coordinator's drafter computes on one of these machines too."""
    carrying: tuple[float, ...] = ()
    """Per hop the part of `links` for which such a segment takes the link, so that no other can leave; () for none."""

    def stage_time(self, stage: int, tokens: int) -> float:
        return interpolate(self.stages[stage], tokens)

    def slowest(self, tokens: int) -> float:
        return max(interpolate(curve, tokens) for curve in self.stages)


def interpolate(curve: tuple[tuple[int, float], ...], tokens: int) -> float:
    """Linear between measured points, flat before the first, with the last slope beyond the last."""
    if len(curve) == 1 or tokens <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if tokens <= x1:
            return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)
    (x0, y0), (x1, y1) = curve[-2], curve[-1]
    return max(y1, y1 + (y1 - y0) * (tokens - x1) / (x1 - x0))


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionRequested(Event):
    """A client asked for a session; its prompt is not empty and fits the limits (the role has checked)."""

    session: str
    prompt: tuple[int, ...]
    policy: str
    max_new_tokens: int
    eos: frozenset[int]
    """Empty when EOS is to be ignored."""
    drafter: bool = True
    """False: no drafter may be asked for this session."""
    features: bool = False
    """The drafter reads the target's hidden states: `FeaturesArrived` will come, late or never."""
    recalls: bool = False
    """The drafter looks text up, so what the text said before may be copied without asking it."""
    options: PolicyOptions | None = None
    """Of the policy; None: its defaults."""
    resume: tuple[int, ...] = ()
    """Tokens of the output that the client has already: they are decreed, and not emitted again."""


@dataclass(frozen=True, slots=True)
class SessionReady(Event):
    """Every stage acknowledged the session in this epoch."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SegmentTaken(Event):
    """Stage 1 has begun all segments up to `ticket`. May be told late, see `Scheduler.hold`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class SegmentReturned(Event):
    """The tail is done with the segment; its newest verdict rides along (None, None before the first)."""

    ticket: int
    session: str
    epoch: int
    number: int
    frontier: int | None
    token: int | None


@dataclass(frozen=True, slots=True)
class TreeGrown(Event):
    """The drafter's answer to one `GrowTree`: per expanded token its children as (token, log-probability), best first.

    Every `GrowTree` is answered, with no children where the drafter has none: a session may wait for the answer.
    `seconds` is how long the step took, from command to answer. `stopped`: it was broken off, as `StopGrowth` allows,
    so that it tells nothing; the drafter has the tokens that it was given all the same.
    """

    session: str
    epoch: int
    children: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    seconds: float = 0.0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class FeaturesArrived(Event):
    """The target's hidden states of all positions below `count` are with the drafter: a `GrowTree` sees them."""

    session: str
    epoch: int
    count: int


@dataclass(frozen=True, slots=True)
class DrafterLost(Event):
    """No drafter answers for this session any more, a `GrowTree` that is out included: it goes on without drafts."""

    session: str


@dataclass(frozen=True, slots=True)
class SessionStopped(Event):
    """Outside reasons to end: stop string, cancel, disconnect, failure. Nothing more is emitted."""

    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class PipeMeasured(Event):
    """A (new) profile of the pipe."""

    profile: PipeProfile


@dataclass(frozen=True, slots=True)
class PipeLost(Event):
    """A stage was lost: nothing that is in flight will return, and every session waits for `PipeRestored`."""


@dataclass(frozen=True, slots=True)
class PipeRestored(Event):
    """All stages are there again, some with empty caches: every session begins again in a new epoch."""


@dataclass(frozen=True, slots=True)
class SegmentsLost(Event):
    """What was sent up to `ticket` and has not come back never will: something sent later has come through."""

    ticket: int


@dataclass(frozen=True, slots=True)
class SessionBroken(Event):
    """A node cannot go on with the session in this epoch: a message about it was lost, or its work failed."""

    session: str
    epoch: int
    reason: str


# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSession(Command):
    """Send `Open` down the pipe; answer with `SessionReady` when all stages acknowledged.

    An epoch above 0 begins a session again: what its caches, its drafter and its features held is gone.
    """

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SendSegment(Command):
    session: str
    epoch: int
    number: int
    ticket: int
    decree: int
    draft: DraftTokens


@dataclass(frozen=True, slots=True)
class GrowTree(Command):
    """Ask the drafter to expand `expand` (serials); answer with `TreeGrown`. At most one is out per session.

    `draft` holds, in topological order, the expanded tokens and those of their ancestors that the drafter has not been
    given before. `frontier` and `token` are the newest verdict that the drafter may prune by: the deepest accepted
    token that it has been given, and the accepted token after it (None before the first verdict).
    """

    session: str
    epoch: int
    expand: tuple[int, ...]
    draft: DraftTokens
    decree: int
    frontier: int | None = None
    token: int | None = None
    width: int = 4
    """Most children for each expanded token."""


@dataclass(frozen=True, slots=True)
class StopGrowth(Command):
    """Nothing that the step which is out expands lives any more: it may be broken off, and is answered in any case."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class EmitTokens(Command):
    """These tokens are final. `drafted[i]`: it was on its way down the pipe as a draft before it became final."""

    session: str
    tokens: tuple[int, ...]
    drafted: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class BreakSession(Command):
    """The session was begun again too often without a single token in between: it is given up."""

    session: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class FinishSession(Command):
    """The session reached its end ("eos", "length", or the reason of `SessionStopped`): close it everywhere."""

    session: str
    epoch: int
    reason: str
    verdicts: int
    segments: int
    drafted: int
    accepted: int
    pruned: int
