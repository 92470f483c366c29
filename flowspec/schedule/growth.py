"""The dialogue with the drafter for one session: what it was given, what to expand next, what an answer is worth.

At most one `GrowTree` is out. Growth is best-first: each step expands the best tokens that were never expanded, so the
tree becomes deep where the drafter is sure and wide where it is not. Knows nothing of the pipe and sends no segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

from flowspec.errors import InvariantViolation
from flowspec.schedule.events import GrowTree, TreeGrown
from flowspec.schedule.session import Session
from flowspec.schedule.tree import Reroot
from flowspec.wire.messages import NO_PARENT, DraftTokens


@dataclass(frozen=True, slots=True)
class GrowthSettings:
    """How the tree grows."""

    expand: int = 10
    """Most tokens that one step expands."""
    floor: float = 0.005
    """Probability, from the root, below which a token is not expanded."""
    gain: float = 0.2
    """A step is asked for when the tokens that it may gain would take longer than this many steps without drafts."""
    trust_smoothing: float = 0.03
    """Weight of the newest accepted token in the running means that tell how far to trust the drafter's scores."""
    pool: int = 128
    """Most live tokens, waiting ones included. Far more than can be sent: what is unlikely now may soon be all there
    is, and the drafter is never asked twice for the same children."""
    smoothing: float = 0.2
    """Weight of the newest step in the running mean of its duration."""
    hit_smoothing: float = 0.02
    """Weight of the newest expanded token in the running mean of its best child's probability."""
    typical_tokens: int = 32
    """A step that has more tokens to read than this is a prefill: its duration says nothing about the next step."""


class Growth:
    """Asks, merges and keeps count."""

    def __init__(self, session: Session, settings: GrowthSettings) -> None:
        self.session = session
        self.settings = settings
        self.lost = not session.drafter
        self.step_seconds: float | None = None
        """Smoothed duration of a step; None before the first that was not a prefill."""
        self.hits = [0.6, 0.12, 0.05, 0.03]
        """Smoothed probabilities of an expanded token's children, the best first."""
        self._promised = self._kept = 1.0
        """Smoothed probability that the drafter gave to the children of an accepted token, and how often one of them
        was the next token indeed."""
        self.restart()

    def restart(self) -> None:
        """A new epoch: the drafter knows nothing of it."""
        prompt = self.session.prompt
        self.out: tuple[int, ...] | None = None
        """Tokens being expanded."""
        self._reading = 0
        self._owed = [(serial, serial - 1 if serial else NO_PARENT, token) for serial, token in enumerate(prompt[:-1])]
        """Accepted tokens that the drafter has not been given, in order."""
        self._given: tuple[int, int] | None = None
        """The deepest accepted token that it has been given, and the accepted token after it."""

    @property
    def trust(self) -> float:
        """Factor on the probability of each guess: a drafter may be right more often than it says, or less."""
        return max(0.05, min(2.0, self._kept / self._promised))

    @property
    def hit(self) -> float:
        """Probability of an expanded token's best child."""
        return self.hits[0]

    def _coming(self, score: float) -> list[float]:
        """Probabilities of the children to come of a token with that score."""
        return [exp(score) * hit for hit in self.hits]

    def follow(self, moved: Reroot) -> None:
        """A verdict moved the root."""
        after = (*moved.passed[1:], moved.root)
        for accepted, successor in zip(moved.passed, after, strict=True):
            if accepted.promised > 0.0:
                guessed = not (moved.created and successor is moved.root)
                weight = self.settings.trust_smoothing
                self._promised += weight * (accepted.promised - self._promised)
                self._kept += weight * (guessed - self._kept)
            if accepted.given:
                self._given = (accepted.serial, successor.token)
            else:
                self._owed.append((accepted.serial, accepted.parent, accepted.token))

    def ask(self, cap: int, plain_seconds: float = float("inf")) -> list[GrowTree]:
        """The next step, if one is due: none is out, and something is worth expanding.

        `cap` is the number of live tokens that may be sent: nothing is asked for that would not be among the best.
        `plain_seconds` is what a token takes without drafts: a step that gains less than it costs is not asked for.
        """
        session = self.session
        if self.lost or self.out is not None or not session.active:
            return []
        chosen = self._choose(cap, plain_seconds)
        if not chosen:
            return []
        tree = session.tree
        missing = tree.missing(chosen)
        rows = [*self._owed, *((token.serial, token.parent, token.token) for token in missing)]
        serials, parents, tokens = zip(*rows, strict=True) if rows else ((), (), ())
        frontier, token = self._given or (None, None)
        command = GrowTree(
            session.name,
            session.epoch,
            tuple(chosen),
            DraftTokens(serials, parents, tokens),
            session.decree,
            frontier,
            token,
        )
        for given in missing:
            given.given = True
        for serial in chosen:
            tree[serial].expanded = True
        if self._owed and session.verdict is not None:
            self._given = (self._owed[-1][0], tree[tree.root].token)
        self._owed = []
        self.out = command.expand
        self._reading = len(rows)
        return [command]

    def _choose(self, cap: int, plain_seconds: float) -> list[int]:
        tree, settings = self.session.tree, self.settings
        # A child at depth `remaining` could not matter any more, so its parent need not be expanded.
        best = tree.unexpanded(log(settings.floor), self.session.remaining - 1, settings.expand)
        ahead = max(1, cap - tree.sent)
        waiting = tree.waiting(self.session.remaining, ahead)
        if len(waiting) == ahead:
            bar = waiting[-1].score - log(self.hit)
            best = [scored for scored in best if scored.score > bar]
        gained = sum(sum(self._coming(scored.score)) for scored in best)
        certain = best and best[0].serial == tree.root
        if not certain and gained * plain_seconds < settings.gain * (self.step_seconds or 0.0):
            return []
        return sorted(scored.serial for scored in best)

    def merge(self, event: TreeGrown) -> None:
        """Take an answer; children of tokens that were pruned meanwhile are dropped."""
        if self.out is None or event.epoch != self.session.epoch:
            return
        self.out = None
        tree, weight = self.session.tree, self.settings.smoothing
        if self._reading <= self.settings.typical_tokens:
            before = event.seconds if self.step_seconds is None else self.step_seconds
            self.step_seconds = before + weight * (event.seconds - before)
        doubt = log(self.trust)
        for parent, children in event.children:
            if not children:
                continue
            corrected = [(token, min(0.0, score + doubt)) for token, score in children]
            scores = sorted((score for _, score in corrected), reverse=True)
            for rank, score in enumerate(scores[: len(self.hits)]):
                self.hits[rank] += self.settings.hit_smoothing * (exp(score) - self.hits[rank])
            if parent in tree:
                tree[parent].promised = min(1.0, sum(exp(min(0.0, score)) for _, score in children))
                tree.merge(parent, corrected)
        tree.trim(self.settings.pool)

    def promise(self) -> tuple[list[float], float] | None:
        """What the next growth brings: probabilities of the best children to come, and the seconds until they are here.

        None if nothing is out, or nothing is known about its duration.
        """
        if self.out is None or self.step_seconds is None or self._reading > self.settings.typical_tokens:
            return None
        tree = self.session.tree
        alive = [
            chance for scored in tree.ranking() if scored.serial in self.out for chance in self._coming(scored.score)
        ]
        if alive:
            return alive, self.step_seconds
        fresh = tree.unexpanded(log(self.settings.floor), self.session.remaining - 1, self.settings.expand)
        if not fresh:
            return None
        return [chance for scored in fresh for chance in self._coming(scored.score)], 2 * self.step_seconds

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the books do not agree with the tree."""
        tree = self.session.tree
        if self._owed and tree[tree.root].given:
            raise InvariantViolation("the drafter lacks ancestors of a token that it has", session=self.session.name)
