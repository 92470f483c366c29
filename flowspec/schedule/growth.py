"""The dialogue with the drafter for one session: what it was given, what to expand next, what an answer is worth.

At most one `GrowTree` is out. Growth is best-first: each step expands the tokens that promise most, those that were
never expanded and those of which the drafter knows more now, since the target's features came. So the tree becomes
deep where the drafter is sure and wide where it is not, and the root is drafted again from the fresh hidden state. How
large a step is, and whether it is worth its time, follows from what earlier steps took and brought. Knows nothing of
the pipe and sends no segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log

from flowspec.errors import InvariantViolation
from flowspec.schedule.events import GrowTree, StopGrowth, TreeGrown
from flowspec.schedule.options import FLOWSPEC
from flowspec.schedule.session import Session
from flowspec.schedule.step_time import StepTime
from flowspec.schedule.tree import DraftToken, Reroot
from flowspec.wire.messages import NO_PARENT, DraftTokens

LEAST_TRUST, MOST_TRUST = 0.01, 2.0

SHORT_STEP = 0.16
"""Share of the time between two segments that a step may take before it has to expand more tokens at once, so that as
many are expanded in that time."""

MOST_STRETCH = 2
"""How many times as many tokens at most."""


@dataclass(frozen=True, slots=True)
class GrowthSettings:
    """How the tree grows."""

    expand: int = FLOWSPEC.expand
    """Most tokens that one step expands, where steps are short beside the time between two segments; up to twice as
    many where they are long."""
    expand_contended: int = 8
    """The same where the drafter takes time from the stages."""
    floor: float = 0.003
    """Probability, from the root, below which a token is not expanded."""
    floor_contended: float = 0.005
    """The same where the drafter takes time from the stages."""
    gain: float = 0.2
    """A step is asked for when the tokens that it may gain would take longer than this many steps without drafts."""
    patience: float = 1.5
    """A step may take this many times what one that expands a single token takes, or as long as a segment: the verdict
    that comes meanwhile has to wait for it."""
    probing: float = 0.02
    """Share of the time that steps may take which are not worth it, to learn whether the drafter became better."""
    trust_smoothing: float = 0.03
    """Weight of the newest accepted token in the running means that tell how far to trust the drafter's scores. The
    first ones weigh more, see `first_impression`."""
    first_impression: float = 3.0
    """What a drafter is taken for at first counts as much as this many tokens that were seen."""
    width: int = 6
    """Children that the drafter is asked for, for each expanded token."""
    width_contended: int = 4
    """Most of them where the drafter takes time from the stages."""
    pool: int = 800
    """Most live tokens, waiting ones included. Far more than can be sent: what is unlikely now may soon be all there
    is, and the drafter is not asked twice for the same children unless it knows more."""
    pool_contended: int = 256
    """The same where the drafter takes time from the stages."""
    hit_smoothing: float = 0.02
    """Weight of the newest expanded token in the running means of its children's probabilities."""
    renewal_smoothing: float = 0.05
    """The same for tokens that were expanded again, in the running mean of what that changed."""
    typical_tokens: int = 32
    """A step that has more tokens to read than this is a prefill: its duration says nothing about the next step."""


class Growth:
    """Asks, merges and keeps count, for one epoch: the drafter knows nothing of a new one."""

    def __init__(self, session: Session, settings: GrowthSettings) -> None:
        self.session = session
        self.settings = settings
        self.lost = not session.drafter
        self.steps = StepTime()
        self.hits = [0.6, 0.12, 0.05, 0.03]
        """Smoothed probabilities of an expanded token's children, the best first."""
        self.renewal = 0.15
        """Smoothed share of the probability that moves to other children when a token is expanded again because
        features came."""
        self._promised = self._kept = 1.0
        """Smoothed probability that the drafter gave to the children of an accepted token, and how often one of them
        was the next token indeed."""
        self._judged = self._counted = 0
        """Accepted tokens, and expanded ones, that these means and `hits` rest on."""
        self._unasked = 0
        """Accepted tokens since the last step."""
        self._free = True
        """The drafter takes no time from the stages."""
        self._interval = float("inf")
        """Seconds between two segments."""
        self.out: tuple[int, ...] | None = None
        """Tokens being expanded."""
        self._stopping = False
        """The step that is out is not wanted any more, and that was said."""
        self._reading = 0
        before = session.prompt[:-1]
        self._owed = [(serial, serial - 1 if serial else NO_PARENT, token) for serial, token in enumerate(before)]
        """Accepted tokens that the drafter has not been given, in order."""
        self._given: tuple[int, int] | None = None
        """The deepest accepted token that it has been given, and the accepted token after it."""

    @property
    def trust(self) -> float:
        """Factor on the probability of each guess: a drafter may be right more often than it says, or less."""
        return max(LEAST_TRUST, min(MOST_TRUST, self._kept / self._promised))

    @property
    def expand(self) -> int:
        """Most tokens that one step expands."""
        settings = self.settings
        if not self._free:
            return min(settings.expand, settings.expand_contended)
        share = self.steps.of(settings.expand) / self._interval
        return int(settings.expand * max(1.0, min(MOST_STRETCH, share / SHORT_STEP)))

    @property
    def width(self) -> int:
        """Children that are asked for, for each expanded token."""
        settings = self.settings
        return settings.width if self._free else min(settings.width, settings.width_contended)

    @property
    def floor(self) -> float:
        """Score, from the root, below which a token is not expanded."""
        return log(self.settings.floor if self._free else self.settings.floor_contended)

    @property
    def pool(self) -> int:
        """Most live tokens, waiting ones included."""
        settings = self.settings
        return settings.pool if self._free else min(settings.pool, settings.pool_contended)

    @property
    def hit(self) -> float:
        """Probability of an expanded token's best child."""
        return self.hits[0]

    def _coming(self, token: DraftToken) -> list[float]:
        """Probabilities of what is to come when `token` is expanded; it is as in the tree's ranking."""
        if token.promised > 0.0:
            return [exp(token.score) * self.renewal]
        tree = self.session.tree
        copied = sum(exp(tree[serial].log_probability) for serial in token.children.values())
        chance = exp(token.score) * max(0.0, 1.0 - copied)
        return [chance * hit for hit in self.hits]

    def follow(self, moved: Reroot) -> None:
        """A verdict moved the root."""
        after = (*moved.passed[1:], moved.root)
        self._unasked += len(moved.passed)
        for accepted, successor in zip(moved.passed, after, strict=True):
            if accepted.promised > 0.0:
                guessed = not (moved.created and successor is moved.root)
                self._judged += 1
                weight = max(self.settings.trust_smoothing, 1 / (self._judged + self.settings.first_impression))
                self._promised += weight * (accepted.promised - self._promised)
                self._kept += weight * (guessed - self._kept)
            if accepted.given:
                self._given = (accepted.serial, successor.token)
            else:
                self._owed.append((accepted.serial, accepted.parent, accepted.token))

    # ---- asking ------------------------------------------------------------------------------------------------------

    def ask(
        self, cap: int, plain_seconds: float = float("inf"), patience: float = float("inf"), *, free: bool = True
    ) -> list[GrowTree]:
        """The next step, if one is due: none is out, and something is worth expanding.

        `cap` is the number of live tokens that may be sent: nothing is asked for that would not be among the best.
        `plain_seconds` is what a token takes without drafts: a step that gains less than it costs is not asked for.
        `patience` is what a step may take without being in the way: about the time between two verdicts.
        `free`: the drafter takes no time from the stages, so a root is expanded whatever it may gain.
        """
        self._free, self._interval = free, patience
        session = self.session
        if self.lost or self.out is not None or not session.active:
            return []
        chosen = self._choose(cap, plain_seconds, patience, free)
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
            self.width,
        )
        again = sum(tree[serial].given for serial in chosen)
        for given in missing:
            given.given = True
        for serial in chosen:
            tree[serial].expanded = True
        if self._owed and session.verdict is not None:
            self._given = (self._owed[-1][0], tree[tree.root].token)
        self._owed = []
        self._unasked = 0
        self.out = command.expand
        self._reading = len(rows) + again
        return [command]

    def stop(self) -> list[StopGrowth]:
        """Break off the step that is out, once, if the verdict has left nothing of what it expands."""
        tree = self.session.tree
        if self.out is None or self._stopping or any(tree.get(serial) is not None for serial in self.out):
            return []
        self._stopping = True
        return [StopGrowth(self.session.name, self.session.epoch)]

    def _choose(self, cap: int, plain_seconds: float, patience: float, free: bool) -> list[int]:
        tree, settings, steps = self.session.tree, self.settings, self.steps
        worth = [(sum(self._coming(token)), token.serial) for token in self._candidates(cap)]
        worth.sort(key=lambda pair: (-pair[0], pair[1]))
        longest, per_token = max(patience, settings.patience * steps.of(1)), steps.per_token
        chosen: list[int] = []
        gained = 0.0
        for value, serial in worth[: self.expand]:
            dear = value * plain_seconds < settings.gain * per_token
            if chosen and (dear or steps.of(len(chosen) + 1) > longest):
                break
            chosen.append(serial)
            gained += value
        if not chosen or gained * plain_seconds >= settings.gain * steps.of(len(chosen)):
            return sorted(chosen)
        # Not worth it, as far as is known. The root alone is expanded all the same, now and then, to know more.
        probed = free or self._unasked * plain_seconds * settings.probing >= steps.of(1)
        return [tree.root] if probed and not tree[tree.root].expanded else []

    def _candidates(self, cap: int) -> list[DraftToken]:
        """Tokens that may be expanded: never asked for, or long enough ago for the drafter to know more now."""
        session, tree = self.session, self.session.tree
        # A child at depth `remaining` could not matter any more, so its parent need not be expanded.
        limits = (self.floor, session.remaining - 1, self.expand)
        best = tree.unexpanded(*limits)
        ahead = max(1, cap - tree.sent)
        waiting = tree.waiting(session.remaining, ahead)
        if len(waiting) == ahead:
            bar = waiting[-1].score - log(max(self.hit, 1e-6))
            best = [token for token in best if token.score > bar]
        if session.reads_features:
            stale = tree.stale(min(session.features, session.root_position), *limits)
            # A head has no answer while the prompt's features are on their way: it is not asked for every part of them.
            best += [token for token in stale if token.promised or not self._behind]
        return best

    @property
    def _behind(self) -> bool:
        """The drafter reads features, and does not have those of all accepted tokens."""
        return self.session.reads_features and self.session.features < self.session.root_position

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def merge(self, event: TreeGrown) -> None:
        """Take an answer; children of tokens that were pruned meanwhile are dropped."""
        if self.out is None or event.epoch != self.session.epoch:
            return
        expanded, self.out, self._stopping = self.out, None, False
        if event.stopped:
            return
        tree, features = self.session.tree, self.session.features
        if self._reading <= self.settings.typical_tokens:
            self.steps.measured(self._reading, event.seconds)
        answers = dict(event.children)
        least, trust = tree.bar(self.pool), self.trust
        for serial in expanded:
            self._take(serial, answers.get(serial, ()), features, least, trust)
        tree.trim(self.pool)

    def _take(
        self, serial: int, answer: tuple[tuple[int, float], ...], features: int, least: float, trust: float
    ) -> None:
        """The drafter's newest opinion of what follows one token; `features`: what it knew.

        New children with a score below `least` would be dropped at once, but for older ones that lose theirs now.
        """
        children, chances = sound(answer)
        tree = self.session.tree
        token = tree.get(serial)
        if (token is None or not token.promised) and (children or not self._behind):
            self._count(sorted(chances, reverse=True), trust)
        if token is None:
            return
        token.features = features
        if not children:
            return
        doubt = log(trust)
        believed = [(child, min(0.0, score + doubt)) for child, score in children]
        if token.promised:
            self._renew(token, believed)
        token.promised = min(1.0, sum(chances))
        tree.merge(serial, believed, complete=True, least=least)

    def _count(self, chances: list[float], trust: float) -> None:
        """`chances`: of an expanded token's children as the drafter said, the best first."""
        self._counted += 1
        weight = max(self.settings.hit_smoothing, 1 / (self._counted + self.settings.first_impression))
        missing = len(self.hits) - len(chances)
        for rank, chance in enumerate(chances[: len(self.hits)] + [0.0] * missing):
            self.hits[rank] += weight * (min(1.0, chance * trust) - self.hits[rank])

    def _renew(self, token: DraftToken, children: list[tuple[int, float]]) -> None:
        """The share of the probability that moved to other children."""
        before = {known: exp(self.session.tree[serial].log_probability) for known, serial in token.children.items()}
        after = {known: exp(score) for known, score in children}
        moved = sum(max(0.0, chance - before.get(known, 0.0)) for known, chance in after.items())
        self.renewal += self.settings.renewal_smoothing * (min(1.0, moved) - self.renewal)

    def promise(self) -> tuple[list[float], float] | None:
        """What the next growth brings: probabilities of the best children to come, and the seconds until they are here.

        None if nothing is out, or nothing is known about its duration.
        """
        if self.out is None or not self.steps.known or self._reading > self.settings.typical_tokens:
            return None
        tree = self.session.tree
        seconds = self.steps.of(self._reading)
        alive = [chance for token in tree.ranking() if token.serial in self.out for chance in self._coming(token)]
        if alive:
            return alive, seconds
        fresh = tree.unexpanded(self.floor, self.session.remaining - 1, self.expand)
        if not fresh:
            return None
        return [chance for token in fresh for chance in self._coming(token)], seconds + self.steps.of(1)

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the books do not agree with the tree."""
        tree = self.session.tree
        if self._owed and tree[tree.root].given:
            raise InvariantViolation("the drafter lacks ancestors of a token that it has", session=self.session.name)


def sound(answer: tuple[tuple[int, float], ...]) -> tuple[list[tuple[int, float]], list[float]]:
    """An answer without damaged scores, and with no more than certainty in all: a drafter may return nonsense.

    Returns the children with their scores, and the probabilities that these are.
    """
    children = list({token: min(0.0, score) for token, score in answer if token >= 0 and isfinite(score)}.items())
    chances = [exp(score) for _, score in children]
    total = sum(chances)
    if total <= 1.0:
        return children, chances
    excess = log(total)
    return [(token, score - excess) for token, score in children], [chance / total for chance in chances]
