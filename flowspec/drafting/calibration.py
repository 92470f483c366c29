"""From what drafters say to what comes true: opinions of one or several, weighed, corrected, and learned from outcomes.

For a token x with probability p_i(x) by drafter i,

    logit(p(x)) = logit(BASE) + bias + sum over i of weight_i * e_i(x),    e_i(x) = logit(p_i(x)) - logit(BASE)

a logarithmic opinion pool (Genest and Zidek, "Combining probability distributions", 1986) over "x comes next": e is the
evidence beyond knowing nothing, so a drafter without an opinion changes nothing, and one drafter with weight 1 and bias
0 is believed as it is. A weight above 1 says that it is surer than it says, below 1 that it is less sure. Weights are
learned by gradient steps on the log-likelihood of what came next, as in context mixing (Mahoney, PAQ), so a drafter
that is wrong loses its weight within a few tokens. Monotone in every opinion: weights are never negative. Knows no
drafter, no session and no tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from operator import mul
from typing import Final

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

Evidence = dict[int, tuple[float, ...]]
"""Per token the evidence for it from every drafter."""


def logit(probability: float) -> float:
    """Log-odds, of a probability kept within `LEAST` and `MOST`."""
    kept = min(max(probability, LEAST), MOST)
    return log(kept / (1.0 - kept))


KNOWING_NOTHING: Final = logit(BASE)


def evidence(opinions: Sequence[Mapping[int, float]]) -> Evidence:
    """What drafters' opinions, as token -> probability, say beyond knowing nothing, for every token in any of them.

    To a token that a drafter did not name it gives `BASE` of the probability that it gave to none, and no more than to
    the least of those that it named.
    """
    unnamed = [
        min(BASE * max(0.0, 1.0 - sum(opinion.values())), *opinion.values()) if opinion else BASE
        for opinion in opinions
    ]
    rests = [logit(chance) - KNOWING_NOTHING for chance in unnamed]
    named = [{token: logit(chance) - KNOWING_NOTHING for token, chance in opinion.items()} for opinion in opinions]
    tokens = dict.fromkeys(token for opinion in opinions for token in opinion)
    return {
        token: tuple([known.get(token, rest) for known, rest in zip(named, rests, strict=True)]) for token in tokens
    }


class OpinionPool:
    """Weights of some drafters, and how they change."""

    def __init__(self, weights: Sequence[float], bias: float = 0.0, rate: float = RATE) -> None:
        self.weights = list(weights)
        self.bias = bias
        self.rate = rate

    def probability(self, found: tuple[float, ...]) -> float:
        """That a token comes next, given the evidence for it."""
        weighed = sum(map(mul, self.weights, found))
        return 1.0 / (1.0 + exp(-(KNOWING_NOTHING + self.bias + weighed)))

    def probabilities(self, found: Evidence) -> list[tuple[int, float]]:
        """(token, probability), most probable first; together at most 1."""
        given = {token: self.probability(each) for token, each in found.items()}
        whole = max(1.0, sum(given.values()))
        return sorted(((token, chance / whole) for token, chance in given.items()), key=lambda pair: -pair[1])

    def learn(self, found: Evidence, came: int) -> None:
        """`came` is the token that came next where `found` was the evidence."""
        steps, shift = [0.0] * len(self.weights), 0.0
        for token, each in found.items():
            error = (token == came) - self.probability(each)
            shift += error
            for index, one in enumerate(each):
                steps[index] += error * one
        self.bias = min(max(self.bias + self.rate * shift, -MOST_BIAS), MOST_BIAS)
        self.weights = [
            min(max(weight + self.rate * step, 0.0), MOST_WEIGHT)
            for weight, step in zip(self.weights, steps, strict=True)
        ]
