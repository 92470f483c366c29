"""Every message that flowspec sends, in one place. `docs/protocol.md` is the authority; this is its code.

Messages are frozen dataclasses of plain values (int, float, str, bool, None, tuples of these, other such dataclasses).
Tensors travel beside a message, never in it. This module knows no encoding (see `frames`), no socket and no torch.

Channels:
    forward   coordinator -> stage 1 -> ... -> tail, in order, nothing may be lost
    return    every stage -> coordinator, in order per stage
    broadcast coordinator (hints) and tail (verdicts) -> whoever listens; anything may be lost, doubled or late
    client    client <-> coordinator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowspec.wire.parameters import SamplingParameters

PROTOCOL_VERSION = 4

NO_PARENT = -1
"""Parent serial of the first token of a session."""

FINAL = -1
"""The tap behind the final norm. A tap i >= 0 is the input of layer i; i == layer count: the last layer's output."""


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages; `kind` names the type on the wire."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class DraftTokens:
    """Draft tokens as columns of equal length, in topological order: a parent always precedes its children.

    Position is not sent: it is the parent's plus one, and 0 for the token whose parent is `NO_PARENT`.
    """

    serials: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.serials)

    def select(self, indices: list[int]) -> DraftTokens:
        """The tokens at `indices`, which must be increasing."""
        return DraftTokens(
            tuple(self.serials[i] for i in indices),
            tuple(self.parents[i] for i in indices),
            tuple(self.tokens[i] for i in indices),
        )

    def followed_by(self, other: DraftTokens) -> DraftTokens:
        """The tokens of both, these first."""
        if not self.serials or not other.serials:
            return self if self.serials else other
        return DraftTokens(self.serials + other.serials, self.parents + other.parents, self.tokens + other.tokens)


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One live session as its sender knows it: epoch and newest verdict (None before the first)."""

    session: str
    epoch: int
    frontier: int | None = None
    token: int | None = None
    features: int = 0
    """The features of all positions below this have reached the coordinator, from every tap."""


# ---- forward pipe ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open(Message):
    """A session begins (or begins again, in a newer epoch): every stage makes an empty cache and acknowledges."""

    kind: ClassVar[str] = "open"
    session: str
    epoch: int
    row_limit: int
    """Most rows (prompt, output and live draft tokens together) that the session's cache may hold."""
    sampling: SamplingParameters
    taps: tuple[int, ...] = ()
    """Hidden states that the session's drafter reads at accepted tokens (see `FINAL`); empty when it reads none."""
    trace: bool = False
    """Note what happens to the session's segments, and send it as `TraceRecords` when the session is freed."""
    prunes: bool = True
    """Stages drop what they hear is dead; else what was alive when its segment was sent is computed by all of them."""


@dataclass(frozen=True, slots=True)
class Segment(Message):
    """A micro-batch of draft tokens. Stage 1 gets token ids alone; later stages one tensor, hidden states (q, h).

    A segment in which nothing is alive goes on as a bare header: no tokens, no tensor.
    """

    kind: ClassVar[str] = "segment"
    session: str
    epoch: int
    number: int
    """Counts from 0 within session and epoch, without gaps, the same at every hop."""
    ticket: int
    """Counts from 1 over all segments that the coordinator ever sent; credit is given in tickets."""
    decree: int
    """Serial of the last token that is accepted by decree (prompt or replay); sampling starts there."""
    draft: DraftTokens
    roster: tuple[RosterEntry, ...]
    carried_bytes: int = 0
    """Bytes that this segment has cost on the links before this hop."""


@dataclass(frozen=True, slots=True)
class Close(Message):
    """A session is over; its rows are freed."""

    kind: ClassVar[str] = "close"
    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Probe(Message):
    """Proves a channel: whoever sees it answers with `ProbeSeen` on the return pipe; forward probes travel on."""

    kind: ClassVar[str] = "probe"
    channel: str
    """"forward" or "verdicts" ("hints" are proven by the beacon)."""
    nonce: int


@dataclass(frozen=True, slots=True)
class Census(Message):
    """Every live session; a stage frees all others. Sent when one says that it holds more than there are."""

    kind: ClassVar[str] = "census"
    roster: tuple[RosterEntry, ...]


@dataclass(frozen=True, slots=True)
class Shutdown(Message):
    """The coordinator stops; a stage passes this on, answers `Stopped` and ends."""

    kind: ClassVar[str] = "shutdown"
    reason: str


@dataclass(frozen=True, slots=True)
class Examine(Message):
    """How fast is this link, who is behind it? Travels down the pipe with one tensor (bytes), or none.

    Every stage passes it on at once, with its own `sender` and `left`, and answers `Examined`. As a broadcast it is
    for spares alone, who answer `SpareExamined`.
    """

    kind: ClassVar[str] = "examine"
    nonce: int
    sender: str
    left: int
    """Nanoseconds of the sender's monotonic clock."""


# ---- broadcast -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict(Message):
    """The frontier of a session moved to the draft token `frontier`; the model's next token after it is `token`."""

    kind: ClassVar[str] = "verdict"
    session: str
    epoch: int
    frontier: int
    token: int


@dataclass(frozen=True, slots=True)
class Cancelled(Message):
    """Hint: nothing of this session and epoch is wanted any more."""

    kind: ClassVar[str] = "cancelled"
    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Beacon(Message):
    """The coordinator lives, and has accepted the hellos of these incarnations. Seeing it proves the hint channel."""

    kind: ClassVar[str] = "beacon"
    incarnation: str
    welcomed: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()
    """Pairs (incarnation, reason) of nodes that do not fit the others."""
    places: tuple[tuple[str, str], ...] = ()
    """Pairs (stage, spare): that spare stands in for that stage."""


@dataclass(frozen=True, slots=True)
class ClockQuery(Message):
    """What time is it at the stages? Sent while a traced session runs; answered with `ClockAnswer`."""

    kind: ClassVar[str] = "clock-query"
    nonce: int


# ---- return pipe -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TimeCurve:
    """Seconds that a forward pass takes as a function of the number of tokens: measured points, increasing."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """A stage introduces itself; repeated until a beacon lists its incarnation."""

    kind: ClassVar[str] = "hello"
    protocol: int
    node: str
    incarnation: str
    fingerprint: str
    """Hash of the model's config and of the names, shapes and sizes of all its tensors."""
    tokenizer: str
    """Hash of the tokenizer's files."""
    dtype: str
    first_layer: int
    end_layer: int
    """The stage holds layers first_layer <= i < end_layer."""
    weight_bytes: int
    curve: TimeCurve
    """Time of a segment at this stage, emulation included."""
    work: TimeCurve
    """The same without emulation: what it costs the host's cores."""
    host: str
    """Identity of the machine (boot id), so that nodes that share cores are known."""
    cores: int
    memory_bytes: int
    """What this stage may spend on caches."""
    row_bytes: int
    """Cache bytes of one row on this stage."""
    spare: str | None = None
    """The spare that stands in for the stage `node`; None: it is that stage itself."""


@dataclass(frozen=True, slots=True)
class Standby(Message):
    """A spare lives; repeated like a heartbeat."""

    kind: ClassVar[str] = "standby"
    node: str
    incarnation: str
    place: str | None = None
    """The stage that it stands in for, also when a coordinator before this one has said so."""


@dataclass(frozen=True, slots=True)
class ProbeSeen(Message):
    kind: ClassVar[str] = "probe-seen"
    node: str
    incarnation: str
    channel: str
    nonce: int


@dataclass(frozen=True, slots=True)
class OpenAcknowledged(Message):
    """Answer to `Open`: `refusal` is empty when the cache is there, else it says why not."""

    kind: ClassVar[str] = "open-acknowledged"
    node: str
    session: str
    epoch: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """Stage 1 has begun all segments up to `ticket`. Absolute, so it may be lost or doubled: the larger one wins."""

    kind: ClassVar[str] = "credit"
    node: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Returned(Message):
    """The tail is done with a segment. Carries its newest verdict on that session (None while nothing was sampled)."""

    kind: ClassVar[str] = "returned"
    node: str
    ticket: int
    session: str
    epoch: int
    number: int
    frontier: int | None
    token: int | None
    computed: int
    """Tokens of the segment that the tail computed, i.e. that were alive when it began."""
    carried_bytes: int


@dataclass(frozen=True, slots=True)
class Features(Message):
    """Hidden states of the accepted tokens at positions `first` .. `first + count - 1`.

    With one tensor (count, hidden) for each of `taps`, in their order, in the node's dtype. A stage sends the taps of
    its own layers; it keeps them, and sends them again, until a roster's `features` is beyond them.
    """

    kind: ClassVar[str] = "features"
    node: str
    session: str
    epoch: int
    first: int
    count: int
    taps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClockAnswer(Message):
    """`nanoseconds` is what the stage's monotonic clock showed when the query came."""

    kind: ClassVar[str] = "clock-answer"
    node: str
    nonce: int
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class TraceRecords(Message):
    """What a stage noted of a traced session, as columns (see `flowspec.tracing.records`), in as many as it takes."""

    kind: ClassVar[str] = "trace-records"
    node: str
    session: str
    epoch: int
    layouts: tuple[int, ...]
    values: tuple[int, ...]
    dropped: int
    """Records before these that found no room; told with the last."""
    last: bool
    """Nothing of this session and epoch comes after it."""


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """A node's event loop and compute thread live. `busy_seconds` and `segments` count since the node's start."""

    kind: ClassVar[str] = "heartbeat"
    node: str
    incarnation: str
    beat: int
    segments: int
    busy_seconds: float
    sessions: int
    rows: int
    queued: int = 0
    """Messages of the forward pipe that wait here."""
    refused: int = 0
    """Messages that could not be understood or believed, and peers without a key, since the node's start."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says of itself for `flowspec doctor`. Sizes in bytes, 0 where they are not known."""

    node: str
    flowspec: str
    python: str
    torch: str
    zeromq: str
    fingerprint: str
    tokenizer: str
    dtype: str
    memory_total: int
    memory_free: int
    encrypted: bool
    clock: float
    """Seconds since 1970, by the node's own clock; in a diagnosis, seconds that it is ahead of the coordinator's."""


@dataclass(frozen=True, slots=True)
class Examined(Message):
    """Answer to `Examine`. Times are nanoseconds of the stage's monotonic clock."""

    kind: ClassVar[str] = "examined"
    node: str
    nonce: int
    left: int
    """As the query had it."""
    arrived: int
    answered: int
    """When this left; the tail sends the payload back with it."""
    round_trips: tuple[float, ...]
    """Seconds that connections to the following node (of the tail: to the coordinator) took to be made."""
    facts: NodeFacts | None


@dataclass(frozen=True, slots=True)
class SpareExamined(Message):
    """A spare's answer to an `Examine` that came as a broadcast."""

    kind: ClassVar[str] = "spare-examined"
    node: str
    nonce: int
    spare: SpareFacts


@dataclass(frozen=True, slots=True)
class Trouble(Message):
    """Something went wrong at a stage. With a session: that session cannot go on. Without: the node cannot."""

    kind: ClassVar[str] = "trouble"
    node: str
    session: str | None
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Leaving(Message):
    """A stage was asked to stop (Ctrl-C): it serves the live sessions to their end and wants no new ones.

    From a spare that stands by: it will take no place any more.
    """

    kind: ClassVar[str] = "leaving"
    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Stopped(Message):
    """The last message of a stage to a coordinator: answer to `Shutdown`, or because it was itself told to stop."""

    kind: ClassVar[str] = "stopped"
    node: str
    incarnation: str


# ---- client ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyOption:
    """One option of a request's policy, as text: which there are is for the policy to say."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Generate(Message):
    """A request. Exactly one of `prompt` and `prompt_token_ids` is given; None elsewhere means the node's default."""

    kind: ClassVar[str] = "generate"
    request: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...] | None
    chat: bool
    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    policy: str | None
    protocol: int = PROTOCOL_VERSION
    trace: bool = False
    """Send what all nodes noted of it, as `TracePart`s and a `TraceEnd`."""
    policy_options: tuple[PolicyOption, ...] = ()
    """On top of the node's own, where the policy is the node's; else on top of the policy's defaults."""
    resume: tuple[int, ...] = ()
    """Tokens of the output that the client has: it goes on behind them, with the same seed. They are not sent again."""


@dataclass(frozen=True, slots=True)
class Started(Message):
    """The request was admitted: its session, the tokens of its prompt, the sampling parameters with the seed drawn."""

    kind: ClassVar[str] = "started"
    request: str
    session: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParameters
    policy: str


@dataclass(frozen=True, slots=True)
class Chunk(Message):
    """Text and tokens that are final. `offset` counts the tokens before; `drafted` tells which were accepted drafts."""

    kind: ClassVar[str] = "chunk"
    request: str
    offset: int
    text: str
    token_ids: tuple[int, ...]
    drafted: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Figures of one request. Times in seconds; `seconds` and `tokens_per_second` leave the first token out.

    A coordinator says them of the tokens behind `resumed`, but `new_tokens` of all. A client gives its caller the times
    of all, and adds to `restarts` how often it asked another coordinator to go on.
    """

    new_tokens: int
    seconds: float
    tokens_per_second: float
    time_to_first_token: float
    accepted_per_verdict: float
    """Tokens gained per verdict that moved the frontier, the sampled one included."""
    verdicts: int
    drafted: int
    """Draft tokens sent down the pipe."""
    accepted: int
    """Draft tokens among the output."""
    pruned: int
    """Draft tokens sent and found dead."""
    segments: int
    link_bytes: int
    restarts: int = 0
    """Times that it was begun again, because a node or a link failed or a coordinator was replaced."""
    resumed: int = 0
    """Tokens of the output that are of an earlier coordinator: no other count includes what it did for them."""


@dataclass(frozen=True, slots=True)
class Finished(Message):
    """The last message of a request that ended well. `finish_reason`: "eos", "stop", "length" or "cancelled"."""

    kind: ClassVar[str] = "finished"
    request: str
    finish_reason: str
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class TracePart(Message):
    """What `node` noted of a request, by its own clock. May come before `Finished` too."""

    kind: ClassVar[str] = "trace-part"
    request: str
    node: str
    layouts: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClockSample:
    """When a stage's clock showed `there`, it was `offset` ahead of the coordinator's, give or take `error`. In ns."""

    there: int
    offset: int
    error: int


@dataclass(frozen=True, slots=True)
class TracedNode:
    """How one node's records are to be read."""

    name: str
    complete: bool
    """All that the node noted has come."""
    dropped: int
    """Records of which there is no trace, because the node keeps a bounded number: the oldest."""
    clock: tuple[ClockSample, ...]
    """Empty when the node has the coordinator's own clock."""


@dataclass(frozen=True, slots=True)
class TraceEnd(Message):
    """The last message of a traced request that ended well, after `Finished`. The coordinator is the first node."""

    kind: ClassVar[str] = "trace-end"
    request: str
    model: str
    drafter: str
    nodes: tuple[TracedNode, ...]


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The last message of a request that was refused or broke. `error` names the class in `flowspec.errors`."""

    kind: ClassVar[str] = "failed"
    request: str
    error: str
    message: str
    retry_after: float | None = None
    """Seconds after which to ask again may help; None when it would not."""


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    kind: ClassVar[str] = "cancel"
    request: str


@dataclass(frozen=True, slots=True)
class StatusQuery(Message):
    kind: ClassVar[str] = "status-query"
    request: str
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class NodeStatus:
    name: str
    state: str
    """"waiting" (no hello yet), "probing", "ready", "leaving" or "lost"."""
    first_layer: int
    end_layer: int
    dtype: str
    weight_bytes: int
    segments: int
    busy_seconds: float
    rows: int
    sessions: int = 0
    queued: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A request that is being decoded. `seconds` since it was asked, `tokens` of its output so far."""

    session: str
    policy: str
    prompt: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Status(Message):
    kind: ClassVar[str] = "status"
    request: str
    ready: bool
    model: str
    policy: str
    drafter: str
    sessions: int
    nodes: tuple[NodeStatus, ...]
    context_limit: int
    waiting: int = 0
    """Requests that wait for a session."""
    requests: tuple[str, ...] = ()
    """Those of the asking client that run or wait: of any other it will hear nothing more."""
    live: tuple[SessionStatus, ...] = ()
    """Every request that is being decoded."""
    in_flight: int = 0
    """Segments on their way through the pipe."""
    uptime: float = 0.0
    """Seconds since the coordinator's start; from then on, the following are counted."""
    tokens: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    """As in a heartbeat, at the coordinator."""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Diagnose(Message):
    """Ask every node for its facts, and measure every link with a few messages of `payload` bytes."""

    kind: ClassVar[str] = "diagnose"
    request: str
    payload: int
    protocol: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One link. `round_trip` in seconds, `rate` in bytes per second; None where it could not be measured."""

    sender: str
    receiver: str
    round_trip: float | None
    rate: float | None


@dataclass(frozen=True, slots=True)
class SpareFacts:
    """What a spare says of itself for `flowspec doctor`."""

    facts: NodeFacts
    """`dtype` is that of the topology; without fingerprint and tokenizer where there is `trouble`."""
    place: str | None
    """The stage that it stands in for."""
    weights: int
    """Bytes of the largest block of layers that it may still have to load."""
    trouble: str
    """Why it could be no stage; empty when it could."""
    links: tuple[LinkFacts, ...]
    """From it to every node that it may have to send to, without rates."""


@dataclass(frozen=True, slots=True)
class Diagnosis(Message):
    """Answer to `Diagnose`; nodes that did not answer in time are missing."""

    kind: ClassVar[str] = "diagnosis"
    request: str
    nodes: tuple[NodeFacts, ...]
    links: tuple[LinkFacts, ...]
    waits_for: str
    """What the pipe still waits for; empty when it is ready."""
    spares: tuple[SpareFacts, ...] = ()
    """Those that answered in time."""
