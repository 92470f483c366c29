"""What a request may say about its policy: one set of options per policy, with defaults and ranges, read from text.

An option travels as text and is checked here once, so that every caller (client, command line, topology) gets the same
error. Knows what the options are, not what a policy does with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Final

from flowspec.errors import ConfigurationError, RequestError

MOST_LIVE = 512
"""Most live draft tokens that any policy keeps in flight."""


def whole(default: int, most: int, least: int = 1) -> int:
    """The field of an option that is a whole number in a range."""
    ranged: int = field(default=default, metadata={"least": least, "most": most})
    return ranged


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Base of all, and those of a policy that has none."""

    @property
    def prunes(self) -> bool:
        """Stages drop what verdicts say is dead; else a segment is computed whole, as it was sent."""
        return True

    @property
    def live_tokens(self) -> int:
        """Most live draft tokens that the session has in a stage's cache at once."""
        return 1


@dataclass(frozen=True, slots=True)
class FlowspecOptions(PolicyOptions):
    """Continuous, without rounds and turns. `false` switches one of FlowSpec's three mechanisms off."""

    tree: int = whole(256, 256, least=2)
    """Most live draft tokens in flight, of a session that has the pipe to itself; on shared cores at most 48."""
    segment: int = whole(48, 256)
    """Most tokens in one segment; on shared cores at most 24."""
    expand: int = whole(16, 64)
    """Most tokens that one step of the drafter expands: on shared cores at most 8, and twice as many where steps are
    long."""
    width: int = whole(0, 64, least=0)
    """Children per expanded token; 0: the topology's `drafter.width`. On shared cores at most 4."""
    score_order: bool = True
    """Send the most probable tokens first; else level by level."""
    prune: bool = True
    """Drop dead tokens wherever they are; else they are computed to the end of the pipe."""
    expansion: bool = True
    """Draft on while tokens are in flight; else only from a root that nobody guessed."""

    @property
    def prunes(self) -> bool:
        return self.prune

    @property
    def live_tokens(self) -> int:
        return self.tree


FLOWSPEC: Final = FlowspecOptions()
"""What holds where nothing is said."""


@dataclass(frozen=True, slots=True)
class TreeOptions(PolicyOptions):
    """What a tree that is drafted as a whole looks like."""

    tree: int = whole(80, 256)
    """Tokens of a tree, its root included."""
    top_k: int = whole(10, 64)
    """Tokens that are expanded on each level, and children asked for each of them."""
    depth: int = whole(6, 16)
    """Levels below the root: steps of the drafter for one tree."""


@dataclass(frozen=True, slots=True)
class RoundOptions(TreeOptions):
    """Whole trees, one after the other."""

    chunks: int = whole(5, 64)
    """Segments that a tree is cut into."""

    @property
    def live_tokens(self) -> int:
        return self.tree


@dataclass(frozen=True, slots=True)
class ChunkedOptions(RoundOptions):
    """Verified when all of the tree is back: nothing is dropped before."""

    @property
    def prunes(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class PipedecOptions(PolicyOptions):
    """One level of the tree per turn."""

    layer: int = whole(16, 64)
    """Tokens of a level."""
    top_k: int = whole(16, 64)
    """Children asked for each token of the level above."""

    @property
    def live_tokens(self) -> int:
        return MOST_LIVE


@dataclass(frozen=True, slots=True)
class LockstepOptions(TreeOptions):
    """The turns of the paper. `false` switches one of FlowSpec's three mechanisms off."""

    segment: int = whole(16, 256)
    """Tokens of a segment of the first tree."""
    expansion_tree: int = whole(64, 256)
    """Tokens that are kept of a tree drafted after an acceptance."""
    deeper_tree: int = whole(48, 256)
    """Tokens that are kept of a draft on top of the last tree, where nothing was accepted."""
    deeper_depth: int = whole(2, 16)
    """Levels of such a draft."""
    score_order: bool = True
    """Send the most probable tokens first; else level by level."""
    prune: bool = True
    """Drop dead tokens wherever they are; else they are computed to the end of the pipe."""
    expansion: bool = True
    """Draft on while tokens are in flight; else one tree per round."""

    @property
    def prunes(self) -> bool:
        return self.prune

    @property
    def live_tokens(self) -> int:
        return MOST_LIVE


OPTIONS: Mapping[str, type[PolicyOptions]] = MappingProxyType(
    {
        "autoregressive": PolicyOptions,
        "flowspec": FlowspecOptions,
        "chunked": ChunkedOptions,
        "pruned": RoundOptions,
        "pipedec": PipedecOptions,
        "lockstep": LockstepOptions,
    }
)
"""Per policy the options that it has."""


def as_text(values: Mapping[str, bool | int | str]) -> tuple[tuple[str, str], ...]:
    """Options as they travel and as `read_options` takes them."""
    return tuple(
        (name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in values.items()
    )


def written_options(policy: str, values: Mapping[str, bool | int | str]) -> tuple[tuple[str, str], ...]:
    """What a topology says under `policy_options`, as pairs for `read_options`; `ConfigurationError` where it would
    refuse them."""
    pairs = as_text(values)
    try:
        read_options(policy, pairs)
    except RequestError as error:
        raise ConfigurationError(f"policy_options in the topology: {error.message}", hint=error.hint) from None
    return pairs


def read_options(policy: str, given: Iterable[tuple[str, str]] = ()) -> PolicyOptions:
    """The options of `policy` from pairs of name and text; of two of one name the later one counts.

    Raises `RequestError` for a policy that there is not, for a name that the policy does not have and for a value that
    does not fit.
    """
    kind = OPTIONS.get(policy)
    if kind is None:
        raise RequestError(f"there is no policy {policy!r}", hint=f"policies: {', '.join(OPTIONS)}")
    known = known_options(kind)
    values: dict[str, int | bool] = {}
    for name, text in given:
        if name not in known:
            raise RequestError(f"the policy {policy} has no option {name!r}", hint=_hint(policy, known))
        value = _value(known[name], text)
        if value is None:
            raise RequestError(
                f"the option {name} of the policy {policy} cannot be {text!r}", hint=_hint(policy, known)
            )
        values[name] = value
    return kind(**values)


def known_options(kind: type[PolicyOptions]) -> dict[str, Field[int] | Field[bool]]:
    """The options of one kind by name, in the order in which they are documented."""
    return {each.name: each for each in fields(kind) if each.init}


def _value(option: Field[int] | Field[bool], text: str) -> int | bool | None:
    """None for a text that is no value of the option."""
    if isinstance(option.default, bool):
        return {"true": True, "false": False}.get(text.strip().lower())
    try:
        value = int(text)
    except ValueError:
        return None
    return value if option.metadata["least"] <= value <= option.metadata["most"] else None


def _hint(policy: str, known: Mapping[str, Field[int] | Field[bool]]) -> str:
    if not known:
        return f"{policy} has no options"
    return f"options of {policy}: {', '.join(map(describe, known.values()))}"


def describe(option: Field[int] | Field[bool]) -> str:
    """Name, values and default in a few words."""
    if isinstance(option.default, bool):
        return f"{option.name} (true or false; {str(option.default).lower()})"
    return f"{option.name} ({option.metadata['least']} to {option.metadata['most']}; {option.default})"
