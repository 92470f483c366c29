"""The sections of a topology file: one pydantic model each, with its defaults and ranges.

Checks what one value or one section can tell. What two nodes have to do with each other (ports, layers, names) is
`topology`'s business; lines and YAML are `topology_file`'s. Knows no model: layer counts are checked later.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from flowspec.wire.parameters import LEAST_PENALTY, MAX_SEED, MOST_PENALTY

LAST_PORT = 65535

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*")
_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_LAYERS = re.compile(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*")

LEAST_CACHE = 1024**2
"""Bytes; less holds no session of any model, and is a size whose unit was forgotten."""

SHOWN = 60
"""Characters of a value that an error repeats."""


def refuse(message: str, *key: str | int) -> PydanticCustomError:
    """An error at `key`, counted from the section in which the validator runs."""
    return PydanticCustomError("topology", "{message}", {"message": message, "key": key})


def _parse_size(value: object) -> object:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise refuse(f'{value!r} is no size; write bytes as a number, or e.g. "512MiB" or "2GiB"')
        return int(float(match[1]) * _UNITS[match[2]])
    return value


def _parse_layers(value: object) -> tuple[int, int] | Literal["auto"]:
    """(2, 6) for "2-5", (3, 4) for 3; auto stays."""
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _LAYERS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise refuse(f'{value!r} is no range of layers; write e.g. "0-7" (both ends included), or auto')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise refuse(f"the range {value} ends before it begins")
    return first, last + 1


def _parse_threads(value: object) -> object:
    if value == "auto":
        return None
    if value is not None and type(value) is not int:
        raise refuse(f"{_shown(value)} is no number of threads; write e.g. 4, or auto")
    return value


def _matching(pattern: str, otherwise: str) -> AfterValidator:
    """Texts that match as a whole; of others an error says that they are `otherwise`."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise refuse(f"{_shown(value)} is {otherwise}")
        return value

    return AfterValidator(check)


def _shown(value: object) -> str:
    return repr(value[:SHOWN]) if isinstance(value, str) else repr(value)[:SHOWN]


def _an_address(host: str) -> str:
    """What looks like an address is one. A resolver would take 10.1 for 10.0.0.1, which nobody means."""
    try:
        if set(host) <= set("0123456789."):
            ipaddress.IPv4Address(host)
        elif ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        kind, more = ("an IPv6", "; a port stands under `port`") if ":" in host else ("an IPv4", "")
        raise refuse(f"{_shown(host)} looks like {kind} address and is none{more}") from None
    return host


def _one_machine(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        raise refuse(f"{host} is no machine that others can reach; name one here, and write {host} as `bind`")
    return host


def _room_for_caches(size: int) -> int:
    if size < LEAST_CACHE:
        raise refuse(f"{size} bytes are no room for a cache; write 1MiB or more (a number without a unit counts bytes)")
    return size


def _or_auto(value: object) -> object:
    return "auto" if value is None else value


def show_layers(layers: tuple[int, int] | Literal["auto"]) -> str:
    """The layers as the file writes them: "0-7" for (0, 8), "7" for (7, 8)."""
    if layers == "auto":
        return layers
    first, last = layers[0], layers[1] - 1
    return f"{first}-{last}" if first < last else str(first)


Size = Annotated[int, BeforeValidator(_parse_size), Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]
Layers = Annotated[tuple[int, int] | Literal["auto"], PlainValidator(_parse_layers), PlainSerializer(show_layers)]
PolicyName = Literal["flowspec", "autoregressive", "chunked", "pruned", "pipedec", "lockstep"]
"""The policies of `flowspec.schedule.policies.POLICIES`, which a topology knows by name only."""

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Device = Annotated[
    str, _matching(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", "no device; write cpu, cuda, cuda:1, mps, or auto")
]
Threads = Annotated[
    Annotated[int, Field(ge=1, le=1024)] | None, BeforeValidator(_parse_threads), PlainSerializer(_or_auto)
]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Name = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "no name: a name is letters, digits, '.', '_' and '-', at most 64, and begins with a letter or digit",
    ),
]
_HOST = r"[A-Za-z0-9_.:%-]{1,255}"
Host = Annotated[
    str,
    _matching(_HOST, "no host; write a name, an IPv4 or an IPv6 address"),
    AfterValidator(_an_address),
    AfterValidator(_one_machine),
]
BindHost = Annotated[
    str,
    _matching(rf"{_HOST}|\*", "nowhere to listen; write a name, an IPv4 or an IPv6 address, or *"),
    AfterValidator(_an_address),
]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, nothing is converted silently, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class StepEmulation(Section):
    """Makes a node as slow as a smaller device: a result is held until base + tokens * per token is over."""

    base_ms: Milliseconds = 0.0
    per_token_ms: Milliseconds = 0.0


class DraftEmulation(StepEmulation):
    """The same for a step of the drafter; its tokens are those that it expands."""

    layer_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What each layer of the drafter beyond its first adds to a step, as a share of the step with one layer."""

    def of_layers(self, layers: int) -> StepEmulation:
        """The times of a drafter with that many layers; one without any takes what one with one layer takes."""
        longer = 1.0 + self.layer_share * max(0, layers - 1)
        return StepEmulation(base_ms=self.base_ms * longer, per_token_ms=self.per_token_ms * longer)


class Emulation(StepEmulation):
    """What a node emulates."""

    draft: DraftEmulation | None = None
    """Of the draft node, which has nothing else to emulate."""
    profile: Text | None = None
    """The profile whose times these are, in place of the others."""

    @model_validator(mode="after")
    def _one_source(self) -> Emulation:
        written = self.model_fields_set - {"profile"}
        if self.profile is not None and written:
            raise refuse(f"the times come from the profile; leave out {', '.join(sorted(written))}", "profile")
        return self


class LinkEmulation(Section):
    """Makes a hop as slow as another network: one-way latency, and a rate (absent: unlimited)."""

    latency_ms: Milliseconds = 0.0
    rate_mbit: Annotated[float, Field(gt=0)] | None = None
    jitter_ms: Milliseconds = 0.0
    """Most that a message may take longer; each draws its own, evenly, and order is kept."""
    message_ms: Milliseconds | None = None
    """Of a message without hidden states; absent: latency, and a header at the link's rate."""
    bytes_per_token: Size | None = None
    """What a hidden state is charged on the link; absent: its own bytes."""

    @property
    def latency(self) -> float:
        """Seconds that a message is under way after its last byte has left."""
        return self.latency_ms / 1000

    @property
    def rate(self) -> float | None:
        """Bytes per second, or None for as fast as it goes."""
        return None if self.rate_mbit is None else self.rate_mbit * 1e6 / 8

    @property
    def jitter(self) -> float:
        """Most seconds that a message may take longer."""
        return self.jitter_ms / 1000

    @property
    def message(self) -> float | None:
        """Seconds of a message without hidden states, or None for those of its bytes."""
        return None if self.message_ms is None else self.message_ms / 1000


class Link(LinkEmulation):
    """The emulation of one hop, in one direction."""

    origin: Name = Field(alias="from")
    target: Name = Field(alias="to")


class NodeEntry(Section):
    """One node as the file writes it; what is absent comes from the topology's defaults (see `Topology.node`)."""

    name: Name
    role: Literal["draft", "stage"]
    host: Host
    port: Annotated[int, Field(ge=1, le=LAST_PORT)]
    bind: BindHost | None = None
    layers: Layers = "auto"
    device: Device | None = None
    dtype: Dtype | None = None
    threads: Threads = None
    model: Text | None = None
    emulate: Emulation | None = None
    speed: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    """For `flowspec plan`: how many times as fast as the device whose times are known; absent: as fast."""
    memory: Size | None = None
    """For `flowspec plan`: bytes that it has for weights and caches; absent: enough."""
    metrics_port: Annotated[int, Field(ge=1, le=LAST_PORT)] | None = None
    """Where it answers `GET /metrics` and `GET /health`; absent: nowhere."""
    metrics_bind: BindHost = "127.0.0.1"


class Spare(Section):
    """A node that holds nothing until a stage is lost, and then its layers. What is absent is as at that stage."""

    name: Name
    host: Host
    port: Annotated[int, Field(ge=1, le=LAST_PORT)]
    bind: BindHost | None = None
    device: Device | None = None
    threads: Threads = None
    model: Text | None = None


class Synthetic(Section):
    """What the model `synthetic` writes, and how well the synthetic drafter guesses it."""

    quality: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Mean probability of the drafter's best guess."""
    tokens_per_round: Annotated[float, Field(gt=1)] | None = None
    """In place of `quality`: tokens that a round of the policy `chunked` writes with its default options."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Another seed, another text."""

    @model_validator(mode="after")
    def _one_measure(self) -> Synthetic:
        if self.quality is not None and self.tokens_per_round is not None:
            raise refuse("write quality or tokens_per_round, not both", "tokens_per_round")
        return self


ModelDrafter = Literal["causal-lm", "eagle", "eagle3"]
"""Kinds of drafters that have weights of their own."""

WITHOUT_WEIGHTS = ("none", "ngram", "synthetic")
"""Kinds of drafters that have none; with the synthetic model there are no others."""

LOOKING_UP = ("ngram", "hybrid")
"""Kinds that copy what the text has said before."""

DEMO_DRAFTERS: dict[str, str] = {"causal-lm": "demo-draft", "eagle": "demo-eagle", "eagle3": "demo-eagle3"}
"""Per kind the model (see `flowspec.model.hub.resolve_model`) that comes with the demo model."""

DEMO_BEST_DRAFTER: ModelDrafter = "eagle3"
"""The one of them that guesses best: what joins `ngram` unless told otherwise."""


class Drafter(Section):
    """Who guesses ahead.

    `auto` is `hybrid` with its own best draft for the demo model, `synthetic` for the synthetic one, else `ngram`.
    """

    kind: Literal["auto", "none", "ngram", "synthetic", "causal-lm", "eagle", "eagle3", "hybrid"] = "auto"
    model: Text | None = None
    of: ModelDrafter | None = None
    """The drafter that joins `ngram` in a hybrid. None: a `causal-lm`, but for the demo model its own best draft."""
    taps: Annotated[tuple[Annotated[int, Field(ge=-1, le=4096)], ...] | None, Field(strict=False)] = None
    """Of an eagle3 head, in place of what its folder says: inputs of the target's layers."""
    width: Annotated[int, Field(ge=1, le=64)] = 6

    @property
    def model_kind(self) -> ModelDrafter | None:
        """The kind of its model, once `Topology.effective_drafter` has decided; None when it has no model."""
        if self.kind in WITHOUT_WEIGHTS or self.kind == "auto":
            return None
        return self.of if self.kind == "hybrid" else cast(ModelDrafter, self.kind)

    @property
    def model_name(self) -> str | None:
        """Its model as `resolve_model` takes it, the one that comes with the demo model included."""
        kind = self.model_kind
        return DEMO_DRAFTERS.get(kind, self.model) if kind and self.model == "demo" else self.model

    @property
    def looks_text_up(self) -> bool:
        """It copies what the text has said before."""
        return self.kind in LOOKING_UP

    @model_validator(mode="before")
    @classmethod
    def _plain_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> Drafter:
        if self.model is not None and self.kind in WITHOUT_WEIGHTS:
            raise refuse(f"a drafter of kind {self.kind} has no model", "model")
        if self.of is not None and self.kind != "hybrid":
            raise refuse(f"a drafter of kind {self.kind} is no hybrid of others", "of")
        if self.taps is not None and "eagle3" not in (self.kind, self.of):
            raise refuse("only an eagle3 head has taps to choose", "taps")
        if self.taps is not None and not 1 <= len(self.taps) <= 8:
            raise refuse(f"{len(self.taps)} taps; a head reads at least one, and at most 8 travel together", "taps")
        return self


class SamplingDefaults(Section):
    """What a request gets that says nothing about sampling. Without a seed, one is drawn for each request."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=LEAST_PENALTY, le=MOST_PENALTY)] = 1.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    generation_config: bool = False
    """Take the sampling values of the model's generation_config.json for what this section does not set."""


class Limits(Section):
    """What may be asked of the nodes; a request over a limit is refused with the limit's name."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of prompt and output together; absent: what the model was made for."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 4096
    """Most tokens that a request may ask for, and what one gets that names no number, if the context has room."""
    sessions: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests that are decoded at the same time; more wait."""
    waiting: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Requests that wait for their turn, first come, first served; more are refused."""
    memory: Annotated[Size, AfterValidator(_room_for_caches)] = 2 * 1024**3
    """Bytes that a node may spend on caches."""
    queue: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Messages that wait at a channel before its sender has to wait."""
    message: Size = 64 * 1024**2
    """Bytes of the largest tensor that a node accepts in a message."""


class Timeouts(Section):
    """How long is waited for whom, in seconds."""

    connect: Seconds = 10.0
    """A client, for the first answer of the coordinator."""
    ready: Seconds = 120.0
    """The coordinator, for all nodes to have loaded their layers and proven their channels."""
    heartbeat_interval: Seconds = 0.5
    heartbeat_deadline: Seconds = 2.0
    """A node that was not heard for so long is lost."""
    spare: Seconds = 2.0
    """A lost node, to be there again by itself before a spare stands in for it."""
    recovery: Seconds = 30.0
    """A lost node, to be there again or to be replaced; then the requests that wait for it fail."""
    progress: Seconds = 30.0
    """When nothing that is in flight has moved for so long, the first stage that answers no probe is lost."""
    close: Seconds = 5.0
    """A node, to stop after it was told to."""
    drain: Seconds = 60.0
    """Live sessions, to end by themselves after the first Ctrl-C."""

    @model_validator(mode="after")
    def _deadline_beyond_interval(self) -> Timeouts:
        if self.heartbeat_deadline <= self.heartbeat_interval:
            raise refuse("must be longer than heartbeat_interval", "heartbeat_deadline")
        return self
