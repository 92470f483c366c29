"""The coordinator's tree of draft tokens: what is known, guessed, sent and expanded ahead of the last certain token.

The root is certain: the last prompt token before the first verdict, the newest sampled token after it. What was
accepted before the root is not kept here, so no operation costs more when the output is longer. Depths, paths and masks
are derived, never stored. Knows no policy, no drafter, no pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from operator import itemgetter
from typing import NamedTuple

from flowspec.errors import InvariantViolation
from flowspec.wire.messages import DraftTokens


@dataclass(slots=True)
class DraftToken:
    """One draft token. `log_probability` is the drafter's, given the path before it: 0.0 where the token is certain."""

    serial: int
    parent: int
    token: int
    log_probability: float = 0.0
    sent: bool = False
    """It has left down the pipe."""
    given: bool = False
    """The drafter has been given it."""
    expanded: bool = False
    """The drafter has been asked for its children."""
    promised: float = 0.0
    """Probability that the drafter gave to all its children together; 0 before it has answered."""
    features: int = -1
    """Positions whose features the drafter had when it last answered for this token; -1 before it has answered."""
    children: dict[int, int] = field(default_factory=dict)
    """Serials of the children by vocabulary id."""


@dataclass(frozen=True, slots=True)
class Reroot:
    """What a verdict did to the tree."""

    passed: tuple[DraftToken, ...]
    """From the old root to the frontier, both included: what is accepted now and no longer in the tree."""
    root: DraftToken
    created: bool
    """The sampled token was not in the tree."""
    dropped: tuple[DraftToken, ...]
    """What contradicts the verdict."""

    @property
    def accepted(self) -> tuple[DraftToken, ...]:
        """The draft tokens after the old root that the verdict accepts; the root that it samples comes after them."""
        return self.passed[1:]


class Scored(NamedTuple):
    """A draft token with what is derived for it: cumulative log-probability and depth relative to the root."""

    serial: int
    score: float
    depth: int


class DraftTree:
    """Tokens + parents + log-probabilities. Serials increase, so that a parent's is always below its children's."""

    def __init__(self, serial: int, parent: int, token: int) -> None:
        """The tree of one certain token."""
        self.root = serial
        self.next_serial = serial + 1
        self._tokens: dict[int, DraftToken] = {serial: DraftToken(serial, parent, token)}
        self._ranking: list[Scored] | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, serial: int) -> bool:
        return serial in self._tokens

    def __getitem__(self, serial: int) -> DraftToken:
        return self._tokens[serial]

    def get(self, serial: int) -> DraftToken | None:
        """None for a serial that is not in the tree."""
        return self._tokens.get(serial)

    def __iter__(self) -> Iterator[DraftToken]:
        return iter(self._tokens.values())

    @property
    def sent(self) -> int:
        """How many of the live tokens have been sent."""
        return sum(token.sent for token in self._tokens.values())

    # ---- growing -----------------------------------------------------------------------------------------------------

    def merge(self, parent: int, children: Iterable[tuple[int, float]], *, complete: bool = False) -> tuple[int, ...]:
        """Add children, as (vocabulary id, log-probability), and return the serials of the new ones.

        A child that is there already keeps its identity and whatever was sent of it, and takes the newer
        log-probability. `complete`: these are the best children there are, so one that is there and not among them is
        at most as probable as the least of them. An unknown parent was pruned meanwhile: nothing happens.
        """
        above = self._tokens.get(parent)
        if above is None:
            return ()
        children = list(children)
        self._ranking = None
        if complete and children and above.children:
            least, named = min(0.0, *(score for _, score in children)), {token for token, _ in children}
            for token, serial in above.children.items():
                if token not in named:
                    self._tokens[serial].log_probability = min(self._tokens[serial].log_probability, least)
        joined = []
        for token, log_probability in children:
            log_probability = min(0.0, log_probability)
            existing = above.children.get(token)
            if existing is None:
                joined.append(self._join(above, token, log_probability).serial)
            else:
                self._tokens[existing].log_probability = log_probability
        return tuple(joined)

    def _join(self, parent: DraftToken, token: int, log_probability: float) -> DraftToken:
        child = DraftToken(self.next_serial, parent.serial, token, log_probability)
        self.next_serial += 1
        parent.children[token] = child.serial
        self._tokens[child.serial] = child
        return child

    # ---- shrinking ---------------------------------------------------------------------------------------------------

    def reroot(self, frontier: int, token: int) -> Reroot:
        """Follow a verdict: everything up to `frontier` is accepted, `token` comes next and is the new root.

        `frontier` must be in the tree (a stale verdict's is not; ask with `in` first).
        """
        passed: list[DraftToken] = []
        serial = frontier
        while serial != self.root:
            passed.append(self._tokens[serial])
            serial = self._tokens[serial].parent
        passed.append(self._tokens[serial])
        passed.reverse()
        last = passed[-1]
        created = token not in last.children
        root = self._join(last, token, 0.0) if created else self._tokens[last.children[token]]
        root.log_probability = 0.0
        kept = {root.serial}
        for candidate in self._tokens.values():  # in the order of serials: parents first
            if candidate.parent in kept:
                kept.add(candidate.serial)
        gone = kept | {passing.serial for passing in passed}
        dropped = tuple(candidate for candidate in self._tokens.values() if candidate.serial not in gone)
        self._tokens = {candidate.serial: candidate for candidate in self._tokens.values() if candidate.serial in kept}
        self._ranking = None
        self.root = root.serial
        return Reroot(tuple(passed), root, created, dropped)

    def trim(self, most: int, keep: frozenset[int] = frozenset()) -> int:
        """Drop the worst leaves that were never sent until at most `most` tokens are left; returns how many went.

        Neither the root nor a token in `keep` (what the drafter is busy with) goes.
        """
        excess = len(self._tokens) - most
        if excess <= 0:
            return 0
        removed = 0
        for candidate in reversed(self.ranking()):  # children before their parents
            worst = self._tokens[candidate.serial]
            if not (worst.sent or worst.children or worst.serial in keep or worst.serial == self.root):
                del self._tokens[self._tokens[worst.parent].children.pop(worst.token)]
                removed += 1
                if removed == excess:
                    break
        self._ranking = [scored for scored in self.ranking() if scored.serial in self._tokens]
        return removed

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def ranking(self) -> Sequence[Scored]:
        """All tokens, best first, with cumulative scores: 0.0 at the root, never above the parent's.

        A parent precedes its children: its score is not below theirs and its serial is smaller.
        """
        if self._ranking is None:
            root = Scored(self.root, 0.0, 0)
            found = {self.root: root}
            for serial, token in self._tokens.items():  # in the order of serials: parents first
                if serial != self.root:
                    _, score, depth = found[token.parent]
                    found[serial] = Scored(serial, score + token.log_probability, depth + 1)
            # Of equal scores the smaller serial first: sorting is stable.
            self._ranking = sorted(found.values(), key=itemgetter(1), reverse=True)
        return self._ranking

    def waiting(self, depth_limit: int, most: int | None = None) -> list[Scored]:
        """Tokens not sent yet, best first, none at `depth_limit` or deeper; any prefix of the list can be sent."""
        tokens = self._tokens
        found = (s for s in self.ranking() if not tokens[s.serial].sent and s.depth < depth_limit)
        return list(islice(found, most))

    def unexpanded(self, floor: float, depth_limit: int, most: int | None = None) -> list[Scored]:
        """Tokens that the drafter was never asked to expand, with a score of at least `floor`, best first."""
        tokens = self._tokens
        likely = takewhile(lambda scored: scored.score >= floor, self.ranking())
        found = (s for s in likely if not tokens[s.serial].expanded and s.depth < depth_limit)
        return list(islice(found, most))

    def stale(self, features: int, floor: float, depth_limit: int, most: int | None = None) -> list[Scored]:
        """Tokens for which the drafter answered when it had fewer features than `features`; else as `unexpanded`."""
        tokens = self._tokens
        likely = takewhile(lambda scored: scored.score >= floor, self.ranking())
        found = (s for s in likely if 0 <= tokens[s.serial].features < features and s.depth < depth_limit)
        return list(islice(found, most))

    def columns(self, serials: Sequence[int]) -> DraftTokens:
        """The tokens as they travel; `serials` must be in topological order."""
        tokens = [self._tokens[serial] for serial in serials]
        return DraftTokens(
            tuple(token.serial for token in tokens),
            tuple(token.parent for token in tokens),
            tuple(token.token for token in tokens),
        )

    def mark_sent(self, serials: Iterable[int]) -> None:
        for serial in serials:
            self._tokens[serial].sent = True

    def missing(self, serials: Iterable[int]) -> list[DraftToken]:
        """Of `serials` and their ancestors within the tree those that the drafter has not been given, parents first."""
        found: set[int] = set()
        for serial in serials:
            while serial in self._tokens and serial not in found and not self._tokens[serial].given:
                found.add(serial)
                serial = self._tokens[serial].parent
        return [self._tokens[serial] for serial in sorted(found)]

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the tree contradicts itself."""
        previous = -1
        for serial, token in self._tokens.items():
            above = self._tokens.get(token.parent)
            problems = (
                (serial != token.serial or serial <= previous, "serials do not increase"),
                (serial >= self.next_serial, "a serial was never dealt"),
                (token.parent >= serial, "a child is older than its parent"),
                ((above is None) != (serial == self.root), "a token hangs in the air"),
                (above is not None and above.children.get(token.token) != serial, "a parent disowns its child"),
                (above is not None and token.sent and not above.sent, "a token was sent before its parent"),
                (above is not None and token.given and not above.given, "a token was given before its parent"),
                (any(child not in self._tokens for child in token.children.values()), "a child is missing"),
                (token.log_probability > 0.0, "a log-probability is positive"),
            )
            for broken, problem in problems:
                if broken:
                    raise InvariantViolation(f"draft tree, token {serial}: {problem}")
            previous = serial
