"""How good synthetic guesses must be for a round of chunked drafting to write so many tokens.

A round is what the policy `chunked` does with its default options: a whole tree is drafted behind one certain token,
level by level, the best `top_k` tokens of a level expanded into `top_k` children each, `depth` levels deep; kept are
the best of all, `tree` tokens with the root. What counts are the tokens that the round writes: the drafts that the
target accepts, and the one that it samples behind them. So a round that guesses nothing right writes 1 token, and none
writes more than `depth + 1`.

Scores are calibrated (see `guesses`), so a tree's expected accepted drafts are the sum of its tokens' probabilities:
trees are drawn, but never verified, and a few hundred of them tell the mean to a percent. Takes no time of any pipe.
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import ceil, floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowspec.errors import ConfigurationError
from flowspec.schedule.options import RoundOptions
from flowspec.synthetic.guesses import Quality

ROUND: Final = RoundOptions()
"""The paper's settings."""

LEAST: Final = 0.05
MOST: Final = 0.999
"""Qualities between which one is looked for."""

_TREES: Final = 1024
_QUANTILES: Final = 1024
_SEED: Final = 54


def tokens_per_round(quality: Quality) -> float:
    """The mean number of tokens that a round writes."""
    draws = [(index + 0.5) / _QUANTILES for index in range(_QUANTILES)]
    chances = np.log(np.array([quality.chances(draw, ROUND.top_k) for draw in draws]))
    root, deeper = _draws()
    top_k, drafts = ROUND.top_k, ROUND.tree - 1
    scores = chances[root]  # (trees, top_k): of the newest level's tokens, best first
    found = [scores]
    for draw in deeper:
        children = (scores[:, :, None] + chances[draw]).reshape(_TREES, top_k * top_k)
        found.append(children)
        scores = -np.partition(-children, top_k - 1, axis=1)[:, :top_k]
    everything = np.concatenate(found, axis=1)
    kept = -np.partition(-everything, drafts - 1, axis=1)[:, :drafts]
    return 1.0 + float(np.exp(kept).sum(axis=1).mean())


@cache
def _draws() -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """Which quantile each token's confidence is: of the root (trees,), of `top_k` tokens on each level after it."""
    dice = np.random.default_rng(_SEED)
    root = dice.integers(0, _QUANTILES, _TREES)
    return root, tuple(dice.integers(0, _QUANTILES, (_TREES, ROUND.top_k)) for _ in range(ROUND.depth - 1))


@lru_cache(maxsize=64)
def quality_for(tokens: float) -> Quality:
    """The quality with which a round writes `tokens` tokens in the mean; `ConfigurationError` where none does."""
    least, most = tokens_per_round(Quality(LEAST)), tokens_per_round(Quality(MOST))
    if not least <= tokens <= most:
        raise ConfigurationError(
            f"no quality of guesses writes {tokens:g} tokens a round",
            # Rounded inwards: what the hint names is not refused.
            hint=f"a round of at most {ROUND.depth} drafts and one sampled token writes "
            f"{ceil(least * 100) / 100:.2f} to {floor(most * 100) / 100:.2f}",
        )
    low, high = LEAST, MOST
    while high - low > 1e-5:
        middle = (low + high) / 2
        if tokens_per_round(Quality(middle)) < tokens:
            low = middle
        else:
            high = middle
    return Quality(round((low + high) / 2, 5))
