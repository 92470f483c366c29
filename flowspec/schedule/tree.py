"""The coordinator's tree of draft tokens: what is known, guessed, sent and expanded ahead of the last certain token.

The root is certain: the last prompt token before the first verdict, the newest sampled token after it. What was
accepted before the root is not kept here, so no operation costs more when the output is longer. Paths and masks are
derived, never stored. The ranking is kept from one question to the next, since the pipe waits for the answers: new
tokens are sorted in among the others, and only a verdict or another opinion of the drafter has all scores added up
anew. Knows no policy, no drafter, no pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from operator import attrgetter
from typing import Final

from flowspec.errors import InvariantViolation
from flowspec.wire.messages import DraftTokens

SCORE: Final = attrgetter("score")


@dataclass(slots=True)
class DraftToken:
    """One draft token. `log_probability` is the drafter's, given the path before it: 0.0 where the token is certain."""

    serial: int
    parent: int
    token: int
    log_probability: float = 0.0
    score: float = 0.0
    """Cumulative log-probability from the root; like `depth` right where the tree's ranking is (see `ranking`)."""
    depth: int = 0
    """Steps from the root."""
    sent: bool = False
    """It has left down the pipe."""
    given: bool = False
    """The drafter has been given it."""
    expanded: bool = False
    """The drafter has been asked for its children."""
    promised: float = 0.0
    """Probability that the drafter gave to all its children together; 0 before it has answered."""
    looked_up: bool = False
    """What the text said after it earlier was looked up (see `recall`)."""
    copy: tuple[int, float] | None = None
    """What was found there: a child's vocabulary id, and the probability that counts give it."""
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


class DraftTree:
    """Tokens + parents + log-probabilities. Serials increase, so that a parent's is always below its children's."""

    def __init__(self, serial: int, parent: int, token: int) -> None:
        """The tree of one certain token."""
        self.root = serial
        self.next_serial = serial + 1
        self._tokens: dict[int, DraftToken] = {serial: DraftToken(serial, parent, token)}
        self._ranking = [self._tokens[serial]]
        self._unranked: list[DraftToken] = []
        """Joined since the ranking was last sorted."""
        self._shifted = False
        """Scores have to be added up again."""
        self.sent = 0
        """How many of the live tokens have been sent."""

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, serial: int) -> bool:
        return serial in self._tokens

    def __getitem__(self, serial: int) -> DraftToken:
        return self._tokens[serial]

    def get(self, serial: int) -> DraftToken | None:
        """None for a serial that is not in the tree."""
        return self._tokens.get(serial)

    def holds_any(self, serials: Iterable[int]) -> bool:
        return not self._tokens.keys().isdisjoint(serials)

    def __iter__(self) -> Iterator[DraftToken]:
        return iter(self._tokens.values())

    # ---- growing -----------------------------------------------------------------------------------------------------

    def merge(
        self,
        parent: int,
        children: Iterable[tuple[int, float]],
        *,
        complete: bool = False,
        least: float = -inf,
    ) -> tuple[int, ...]:
        """Add children, as (vocabulary id, log-probability), and return the serials of the new ones.

        A child that is there already keeps its identity and whatever was sent of it, and takes the newer
        log-probability. `complete`: these are the best children there are, so one that is there and not among them is
        at most as probable as the least of them. New ones with a score, from the root, below `least` are left out.
        An unknown parent was pruned meanwhile: nothing happens.
        """
        above = self._tokens.get(parent)
        if above is None:
            return ()
        children = list(children)
        if complete and children and above.children:
            worst, named = min(0.0, *(score for _, score in children)), {token for token, _ in children}
            for token, serial in above.children.items():
                if token not in named:
                    self._revise(self._tokens[serial], min(self._tokens[serial].log_probability, worst))
        joined = []
        enough = -inf if self._shifted else least - above.score
        for token, log_probability in children:
            log_probability = min(0.0, log_probability)
            existing = above.children.get(token)
            if existing is None:
                if log_probability >= enough:
                    joined.append(self._join(above, token, log_probability).serial)
            else:
                self._revise(self._tokens[existing], log_probability)
        return tuple(joined)

    def _join(self, parent: DraftToken, token: int, log_probability: float) -> DraftToken:
        serial = self.next_serial
        child = DraftToken(
            serial, parent.serial, token, log_probability, parent.score + log_probability, parent.depth + 1
        )
        self.next_serial += 1
        parent.children[token] = serial
        self._tokens[serial] = child
        self._unranked.append(child)
        return child

    def _revise(self, token: DraftToken, log_probability: float) -> None:
        if token.log_probability != log_probability:
            token.log_probability = log_probability
            self._shifted = True

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
        self.root = root.serial
        self.sent = sum(candidate.sent for candidate in self._tokens.values())
        self._shifted = True
        return Reroot(tuple(passed), root, created, dropped)

    def trim(self, most: int) -> int:
        """Drop the worst leaves until at most `most` tokens are left, if so many may go; returns how many went.

        The root stays, and so does what was sent or given to the drafter: when such a token is guessed again, it has to
        be the one that is known there, since of two with one parent and one vocabulary id a cache follows the older.
        """
        excess = len(self._tokens) - most
        if excess <= 0:
            return 0
        tokens, ranking = self._tokens, self.ranking()
        removed, place = 0, len(ranking)
        while removed < excess and place:
            place -= 1
            worst = ranking[place]  # children before their parents
            if not (worst.sent or worst.given or worst.children or worst.serial == self.root):
                del tokens[tokens[worst.parent].children.pop(worst.token)]
                removed += 1
        self._ranking[place:] = [token for token in ranking[place:] if token.serial in tokens]
        return removed

    def bar(self, most: int) -> float:
        """The score below which a new leaf would be among the first that `trim(most)` drops, as opinions are now."""
        ranking = self.ranking()
        return ranking[most - 1].score if len(ranking) >= most else -inf

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def ranking(self) -> Sequence[DraftToken]:
        """All tokens, best first, their scores and depths right: 0.0 and 0 at the root, no score above the parent's.

        A parent precedes its children: its score is not below theirs and its serial is smaller.
        """
        # Of equal scores the smaller serial first: sorting is stable, and tokens join in the order of serials.
        if self._shifted:
            tokens, root = self._tokens, self.root
            for serial, token in tokens.items():  # in the order of serials: parents first
                if serial == root:
                    token.score, token.depth = 0.0, 0
                else:
                    above = tokens[token.parent]
                    token.score, token.depth = above.score + token.log_probability, above.depth + 1
            self._ranking = sorted(tokens.values(), key=SCORE, reverse=True)
        elif self._unranked:
            self._ranking += self._unranked
            self._ranking.sort(key=SCORE, reverse=True)
        self._unranked, self._shifted = [], False
        return self._ranking

    def waiting(self, depth_limit: int, most: int | None = None) -> list[DraftToken]:
        """Tokens not sent yet, best first, none at `depth_limit` or deeper; any prefix of the list can be sent."""
        found = (token for token in self.ranking() if not token.sent and token.depth < depth_limit)
        return list(islice(found, most))

    def unexpanded(self, floor: float, depth_limit: int, most: int | None = None) -> list[DraftToken]:
        """Tokens that the drafter was never asked to expand, with a score of at least `floor`, best first."""
        found = (token for token in self._likely(floor) if not token.expanded and token.depth < depth_limit)
        return list(islice(found, most))

    def stale(self, features: int, floor: float, depth_limit: int, most: int | None = None) -> list[DraftToken]:
        """Tokens for which the drafter answered when it had fewer features than `features`; else as `unexpanded`."""
        found = (t for t in self._likely(floor) if 0 <= t.features < features and t.depth < depth_limit)
        return list(islice(found, most))

    def _likely(self, floor: float) -> Iterator[DraftToken]:
        return takewhile(lambda token: token.score >= floor, self.ranking())

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
            token = self._tokens[serial]
            self.sent += not token.sent
            token.sent = True

    def path(self, serial: int) -> list[int]:
        """Vocabulary ids from behind the root down to `serial`."""
        tokens = []
        while serial != self.root:
            token = self._tokens[serial]
            tokens.append(token.token)
            serial = token.parent
        return tokens[::-1]

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
        if self.sent != sum(token.sent for token in self._tokens.values()):
            raise InvariantViolation("draft tree: the number of tokens that were sent is wrong")
        if sorted(token.serial for token in self.ranking()) != list(self._tokens):
            raise InvariantViolation("draft tree: the ranking has other tokens than the tree")
