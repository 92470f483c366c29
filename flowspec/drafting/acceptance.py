"""How good are drafts? Teacher-forced: real text as the context, and one whole tree of drafts judged by the target.

At a position of a text the drafter reads everything before it (with the target's own hidden states, where it wants
them) and grows a full tree through the very `Growth` that a pipeline uses; the target then runs the tree once, and the
verdict walk counts the accepted drafts and the one token that is sampled behind them. Whatever the target samples, the
next position's context is the text again, so loops in generated text flatter nobody. Knows no pipe and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from typing import Final

import torch

from flowspec.drafting.drafter import Drafter
from flowspec.errors import InvariantViolation
from flowspec.model.block import LayerBlock
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.schedule.events import SessionRequested, TreeGrown
from flowspec.schedule.growth import Growth, GrowthSettings
from flowspec.schedule.session import Session
from flowspec.wire.messages import FINAL, NO_PARENT, DraftTokens
from flowspec.wire.parameters import SamplingParameters

FULL_TREE: Final = 60
"""Draft tokens of a full tree, the root not counted."""
WIDTH: Final = 4
"""Children that are asked for per expanded token."""
STEPS: Final = 64
"""Most steps for one tree: a cap, never reached by a drafter that answers with what it was asked for."""
SESSION: Final = "acceptance"
GROWTH: Final = GrowthSettings(floor=1e-30, gain=0.0, pool=512)
"""Grow until nothing more could be among the best `FULL_TREE`: what is measured is the drafts, not the haste."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A child of a token that the target accepted: what the drafter said of it, and what came of it."""

    probability: float
    """The drafter's, given that the tokens before it are right."""
    came_true: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One full tree at one position."""

    context: int
    """Tokens before the tree, its root included."""
    drafted: int
    accepted: int
    steps: int
    """Steps that the drafter took for the tree."""
    guesses: tuple[Guess, ...]
    """All children of the root and of the accepted drafts."""

    @property
    def tokens(self) -> int:
        """Tokens of one target forward: the accepted drafts, and the one that is sampled behind them."""
        return self.accepted + 1


@dataclass(frozen=True, slots=True)
class Bin:
    """Guesses with nearly the same probability."""

    guesses: int
    predicted: float
    """Mean probability that the drafter gave."""
    observed: float
    """Share that came true."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What many trials say of one drafter."""

    positions: int
    mean: float
    """Tokens per target forward."""
    error: float
    """Standard error of `mean`."""
    drafted: float
    steps: float
    reliability: tuple[Bin, ...]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Acceptance:
        """Means over `trials`; at least one."""
        count = len(trials)
        tokens = [trial.tokens for trial in trials]
        mean = sum(tokens) / count
        variance = sum((each - mean) ** 2 for each in tokens) / max(1, count - 1)
        return cls(
            count,
            mean,
            sqrt(variance / count),
            sum(trial.drafted for trial in trials) / count,
            sum(trial.steps for trial in trials) / count,
            reliability([guess for trial in trials for guess in trial.guesses]),
        )


EDGES: Final = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
"""Of the bins of a reliability curve."""


def reliability(guesses: Sequence[Guess], edges: Sequence[float] = EDGES) -> tuple[Bin, ...]:
    """The reliability curve: per bin of probabilities the share of guesses that came true. Empty bins are left out."""
    bins = []
    for index, low in enumerate(edges[:-1]):
        last = index == len(edges) - 2
        inside = [g for g in guesses if low <= g.probability and (last or g.probability < edges[index + 1])]
        if inside:
            predicted = sum(guess.probability for guess in inside) / len(inside)
            bins.append(Bin(len(inside), predicted, sum(guess.came_true for guess in inside) / len(inside)))
    return tuple(bins)


class Teacher:
    """The target over one text: reads it from left to right, each token once, and judges trees on the way.

    `block` holds all layers. Of what was read it keeps the hidden states that a drafter reads (`Drafter.taps`).
    """

    def __init__(self, block: LayerBlock, taps: tuple[int, ...], row_limit: int) -> None:
        if not (block.is_first and block.is_tail):
            raise InvariantViolation("a teacher needs all layers of the target")
        self._block = block
        self._taps = taps
        self._cache = block.new_cache(row_limit)
        self._features: list[torch.Tensor] = []
        self.tokens: tuple[int, ...] = ()
        """What was read."""

    @property
    def features(self) -> torch.Tensor:
        """Per token that was read its taps, side by side in their order: (tokens, sum of widths), on the CPU."""
        return torch.cat(self._features) if self._features else torch.empty(len(self.tokens), 0)

    def free(self) -> None:
        """Give the cache back."""
        self._cache.free()

    def read(self, tokens: Sequence[int]) -> None:
        """Accept the next tokens of the text."""
        if tokens:
            self._accept(tokens)

    def write(self, last: int, sampler: Sampler) -> int:
        """Accept `last`, the next token of the text, and return what the target samples behind it."""
        logits = self._block.logits(self._accept([last]))[0]
        return sampler.sample(logits, len(self.tokens), self._history(sampler))

    def _history(self, sampler: Sampler) -> TokenHistory | None:
        """What was read, where `sampler` asks for it."""
        if not sampler.needs_history:
            return None
        history = TokenHistory(self._block.vocab_size)
        history.add(self.tokens)
        return history

    def _accept(self, tokens: Sequence[int]) -> torch.Tensor:
        """Hidden states (n, hidden) of the next tokens of the text after the last layer."""
        first = len(self.tokens)
        serials = tuple(range(first, first + len(tokens)))
        parents = tuple(serial - 1 if serial else NO_PARENT for serial in serials)
        seen: dict[int, torch.Tensor] = {}
        output = self._forward(DraftTokens(serials, parents, tuple(tokens)), serials[-1], seen)
        if self._taps:
            seen[self._block.end_layer] = output
            if FINAL in self._taps:
                seen[FINAL] = self._block.normalise(output)
            self._features.append(torch.cat([seen[tap] for tap in self._taps], dim=1).cpu())
        self.tokens += tuple(tokens)
        return output

    def judge(self, draft: DraftTokens, sampler: Sampler) -> list[int]:
        """What the target samples after each token of `draft`, a tree whose root follows what was read.

        The cache is as before afterwards.
        """
        block, cache = self._block, self._cache
        output = self._forward(draft, -1)
        history = self._history(sampler)
        sampled = []
        for serial, logits in zip(draft.serials, block.logits(output), strict=True):
            row = cache.find(serial)
            assert row is not None
            path = cache.path_tokens(row) if history is not None else ()
            sampled.append(sampler.sample(logits, cache.position_of(row) + 1, history, path))
        cache.truncate(cache.prefix)
        return sampled

    def _forward(self, draft: DraftTokens, decree: int, seen: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Hidden states (n, hidden) after the last layer; rows up to `decree` are accepted, `seen` gets the taps."""

        def observe(layer: int, hidden: torch.Tensor) -> None:
            if seen is not None and layer in self._taps:
                seen[layer] = hidden

        batch = self._cache.begin(draft)
        inputs = torch.tensor(draft.tokens, dtype=torch.int64)
        output = self._block.forward(inputs, self._cache, batch, observe=observe)
        assert output is not None
        self._cache.commit(decree)
        return output


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree of drafts, root first, each parent before its children."""

    draft: DraftTokens
    probabilities: dict[int, float]
    """Per serial what the drafter gave to the token, its parent being right."""
    steps: int


def grow_full_tree(
    drafter: Drafter,
    context: Sequence[int],
    sampling: SamplingParameters,
    features: torch.Tensor | None = None,
    *,
    size: int = FULL_TREE,
    width: int = WIDTH,
    settings: GrowthSettings = GROWTH,
) -> Grown:
    """The tree of the best `size` drafts behind `context`, whose last token is the root.

    `features`: (len(context) - 1, F), the target's at all tokens but the root, as they are when a token was sampled.
    """
    session = Session(SessionRequested(SESSION, tuple(context), "flowspec", len(context) + size, frozenset()))
    session.acknowledge(0)
    growth = Growth(session, settings)
    drafter.open(SESSION, sampling, len(context) + settings.pool + size)
    steps = 0
    try:
        if features is not None and drafter.taps:
            drafter.take_features(SESSION, 0, 0, features)
        while steps < STEPS and (commands := growth.ask(size + 1)):
            for command in commands:
                growth.merge(TreeGrown(SESSION, 0, drafter.grow(command, width)))
            steps += 1
    finally:
        drafter.close(SESSION)
    tree = session.tree
    serials = sorted(token.serial for token in tree.ranking()[: size + 1])
    return Grown(tree.columns(serials), {serial: exp(tree[serial].log_probability) for serial in serials}, steps)


def try_tree(teacher: Teacher, grown: Grown, sampler: Sampler) -> Trial:
    """Run the tree through the target, and walk: sample at a token, go to the child that carries it, repeat."""
    draft = grown.draft
    sampled = dict(zip(draft.serials, teacher.judge(draft, sampler), strict=True))
    children: dict[int, list[tuple[int, int]]] = {}
    for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
        children.setdefault(parent, []).append((serial, token))
    guesses: list[Guess] = []
    at, accepted = draft.serials[0], 0
    while True:
        below = children.get(at, [])
        guesses += [Guess(grown.probabilities[serial], token == sampled[at]) for serial, token in below]
        following = next((serial for serial, token in below if token == sampled[at]), None)
        if following is None:
            return Trial(len(teacher.tokens) + 1, len(draft) - 1, accepted, grown.steps, tuple(guesses))
        at, accepted = following, accepted + 1


def measure(
    drafter: Drafter,
    block: LayerBlock,
    samples: Sequence[tuple[Sequence[int], Sequence[int]]],
    sampling: SamplingParameters,
    *,
    shared_noise: bool = True,
    size: int = FULL_TREE,
    width: int = WIDTH,
    settings: GrowthSettings = GROWTH,
) -> Iterator[Trial]:
    """A trial for every position of every sample: (tokens of a text, increasing lengths of contexts within it).

    `block` is the whole target. Each trial has a seed of its own, which follows from `sampling.seed`. Without
    `shared_noise` the drafter ranks by its probabilities alone, as at temperature 0: what drafts are worth where the
    noise is not known to the drafter (exactly so at temperature 1).
    """
    number = 0
    for tokens, lengths in samples:
        teacher = Teacher(block, drafter.taps, max(lengths) + size + 1)
        for length in lengths:
            number += 1
            law = replace(sampling, seed=sampling.seed + number)
            teacher.read(tokens[len(teacher.tokens) : length - 1])
            opened = law if shared_noise else replace(law, temperature=0.0)
            grown = grow_full_tree(
                drafter, tokens[:length], opened, teacher.features, size=size, width=width, settings=settings
            )
            yield try_tree(teacher, grown, Sampler(law, block.vocab_size))
        teacher.free()
