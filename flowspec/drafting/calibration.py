"""From what drafters say to what comes true: opinions of one or several, weighed, corrected, and learned from outcomes.

For a token x with probability p_i(x) by drafter i,

    logit(p(x)) = logit(BASE) + bias + sum over i of weight_i * e_i(x),    e_i(x) = logit(p_i(x)) - logit(BASE)

a logarithmic opinion pool (Genest and Zidek, "Combining probability distributions", 1986) over "x comes next": e is the
evidence beyond knowing nothing, so a drafter without an opinion changes nothing, and one drafter with weight 1 and bias
0 is believed as it is. A weight above 1 says that it is surer than it says, below 1 that it is less sure. Weights are
learned by gradient steps on the log-likelihood of what came next, as in context mixing (Mahoney, PAQ), so a drafter
that is wrong loses its weight within a few tokens. Monotone in every opinion: weights are never negative. Knows no
drafter, no session and no tree.

The tokens of a whole step are one array: a step asks about a hundred of them, each for a handful of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import log
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Opinion = Sequence[tuple[int, float]]
"""What one drafter says comes at one place: (token, log-probability)."""

BASE: Final = 0.05
"""Probability of a token of which nothing is known but that somebody named it (measured: of those that n-grams name
and a draft model does not, and the other way round, about this share comes next)."""
LEAST: Final = 1e-4
MOST: Final = 0.999
"""Opinions are taken as no surer than these."""
MOST_WEIGHT: Final = 2.0
MOST_BIAS: Final = 3.0
RATE: Final = 0.005
"""Of learning: small against noise, large enough for a drafter that is surely wrong."""
TOKEN_BITS: Final = 32
KNOWING_NOTHING: Final = log(BASE / (1.0 - BASE))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What drafters say beyond knowing nothing about the tokens at some places; one column per token.

    `places` (n,) increase; `tokens` (n,) increase within a place, where each is there once; `found` (drafters, n).
    """

    places: Integers
    tokens: Integers
    found: Floats

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, place: int) -> Evidence:
        """The columns of one place."""
        first, end = np.searchsorted(self.places, (place, place + 1)).tolist()
        return Evidence(self.places[first:end], self.tokens[first:end], self.found[:, first:end])


def evidence(opinions: Sequence[Sequence[Opinion]]) -> Evidence:
    """What `opinions`, per drafter and place, say beyond knowing nothing of every token that any of them names.

    To a token that a drafter did not name it gives `BASE` of the probability that it gave to none, and no more than to
    the least of those that it named at the place. Damaged scores and what is no token are left out, and no opinion is
    more than certain.
    """
    count = len(opinions[0])
    columns = [_columns(each) for each in opinions]
    keys, where = np.unique(np.concatenate([key for key, _, _ in columns]), return_inverse=True)
    found = np.empty((len(opinions), len(keys)))
    places, first = keys >> TOKEN_BITS, 0
    for row, (key, place, scores) in zip(found, columns, strict=True):
        chances = np.exp(np.minimum(scores, 0.0))
        whole = np.bincount(place, chances, count)
        chances /= np.maximum(whole, 1.0)[place]
        unnamed = BASE * np.maximum(1.0 - whole, 0.0)
        np.minimum.at(unnamed, place, chances)
        row[:] = _beyond_nothing(unnamed)[places]
        row[where[first : first + len(key)]] = _beyond_nothing(chances)
        first += len(key)
    return Evidence(places, keys & (1 << TOKEN_BITS) - 1, found)


def _columns(opinions: Sequence[Opinion]) -> tuple[Integers, Integers, Floats]:
    """Of one drafter's opinions: keys of place and token, places and scores."""
    lengths = [len(opinion) for opinion in opinions]
    tokens, scores = zip(*chain.from_iterable(opinions), strict=True) if any(lengths) else ((), ())
    place = np.repeat(np.arange(len(lengths)), lengths)
    score, token = np.array(scores, dtype=np.float64), np.array(tokens, dtype=np.int64)
    key = (place << TOKEN_BITS) | token
    sound = np.isfinite(score) & (token >> TOKEN_BITS == 0)
    return (key, place, score) if sound.all() else (key[sound], place[sound], score[sound])


def _beyond_nothing(chances: Floats) -> Floats:
    """Log-odds of probabilities, kept within `LEAST` and `MOST`, less those of a token of which nothing is known."""
    kept = chances.clip(LEAST, MOST)
    log_odds: Floats = np.log(kept / (1.0 - kept)) - KNOWING_NOTHING
    return log_odds


class OpinionPool:
    """Weights of some drafters, and how they change."""

    def __init__(self, weights: Sequence[float], bias: float = 0.0, rate: float = RATE) -> None:
        self.weights: Floats = np.array(weights, dtype=np.float64)
        self.bias = bias
        self.rate = rate

    def probabilities(self, given: Evidence) -> Floats:
        """That each token comes next, (n,)."""
        log_odds = self.weights @ given.found
        log_odds += KNOWING_NOTHING + self.bias
        chances: Floats = 1.0 / (1.0 + np.exp(-log_odds))
        return chances

    def best(self, given: Evidence, count: int, width: int) -> list[list[tuple[int, float]]]:
        """For each of `count` places at most `width` tokens with their log-probabilities, most probable first.

        Those of a place are together at most 1.
        """
        places, chances = given.places, self.probabilities(given)
        chances /= np.maximum(np.bincount(places, chances, count), 1.0)[places]
        order = np.lexsort((-chances, places))
        tokens, scores = given.tokens[order], np.log(chances[order])
        starts = np.searchsorted(places, np.arange(count + 1)).tolist()
        chosen = [slice(start, min(end, start + width)) for start, end in pairwise(starts)]
        return [list(zip(tokens[some].tolist(), scores[some].tolist(), strict=True)) for some in chosen]

    def learn(self, given: Evidence, came: int) -> None:
        """`came` is the token that came next at the place that `given` is about."""
        errors = (given.tokens == came) - self.probabilities(given)
        self.bias = min(max(self.bias + self.rate * float(errors.sum()), -MOST_BIAS), MOST_BIAS)
        self.weights = (self.weights + self.rate * (given.found @ errors)).clip(0.0, MOST_WEIGHT)
