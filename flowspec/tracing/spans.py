"""The vocabulary of a trace: what happened where, when and for how long. Pure data.

Whoever has times can make spans: a running pipeline by its clocks, a simulator by its virtual one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Value = int | float | str

CAUSES = ("start", "miss", "drafter", "held", "upstream", "link", "overhead", "end")
"""Why a stage had nothing to do; `flowspec.tracing.bubbles` says what each means."""

OUTCOMES = ("whole", "pruned", "dead", "abandoned")
"""What became of a segment at a stage: all of it was computed and lives, part of it was found dead before or after the
forward, all of it was dead on arrival, all of it died during the forward."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What spans of one kind are: the track that shows them, and the names of their arguments."""

    track: str
    arguments: tuple[str, ...]
    instant: bool = False
    """It has no duration."""
    overlaps: bool = False
    """Several may last at the same time at one node."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # At the draft node.
        "request": Kind("request", ("prompt", "tokens")),
        "chosen": Kind(
            "segments",
            ("ticket", "number", "tokens", "waiting", "tree", "flying", "root", "prompt", "useful"),
            instant=True,
        ),
        "drafted": Kind("drafter", ("expanded", "given", "children"), overlaps=True),
        "returned": Kind("verdicts", ("ticket", "frontier", "token", "moved", "guessed"), instant=True),
        "emitted": Kind("tokens", ("tokens",), instant=True),
        "features": Kind("features", ("sender", "count", "bytes"), instant=True),
        # At a stage.
        "segment": Kind("compute", ("ticket", "number", "tokens", "computed", "kept", "outcome")),
        "bubble": Kind("idle", ("cause", "ticket")),
        "queued": Kind("queue", ("ticket",), overlaps=True),
        "verdict": Kind("verdicts", ("ticket", "frontier", "token"), instant=True),
        "heard": Kind("verdicts", ("frontier", "token"), instant=True),
        "pruned": Kind("pruned", ("frontier", "rows", "accepted"), instant=True),
        # At whoever sends, to `to`.
        "transfer": Kind("link", ("ticket", "bytes", "to"), overlaps=True),
    }
)
"""All kinds of spans; `docs/tracing.md` says what their arguments mean."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that happened at `node`, from `start` on for `duration` seconds of the trace's time line."""

    node: str
    kind: str
    start: float
    duration: float = 0.0
    args: Mapping[str, Value] = field(default_factory=dict)
    session: str = ""

    @property
    def end(self) -> float:
        return self.start + self.duration

    def number(self, name: str) -> int:
        """The argument `name`, which is an integer; -1 when the span does not say."""
        value = self.args.get(name, -1)
        return value if isinstance(value, int) else -1

    def text(self, name: str) -> str:
        """The argument `name` as text; empty when the span does not say."""
        return str(self.args.get(name, ""))
