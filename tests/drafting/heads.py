"""A small head in float64 that is made of nothing but attention, and its evaluation without any cache.

It keeps the row convention of heads and the parts of their interface that a drafter uses. Layers are written twice:
once over a cache with its masks, once over a plain chain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowspec.model.cache import CacheShape, TreeCache
from flowspec.model.rows import Batch
from flowspec.model.sampling import SHARPNESS
from tests.model.running import chain

HIDDEN = 8


class SmallHead:
    """`layers` attention layers; `target_tokens` as in `DraftHead`. Counts what it is asked for."""

    kind = "small"
    taps = (0, 2)
    weight_bytes = 1
    dtype = torch.float64
    device = torch.device("cpu")
    hidden_size = HIDDEN
    sharpness = SHARPNESS
    feature_size = 5

    def __init__(self, vocab_size: int = 12, layers: int = 1, target_tokens: list[int] | None = None) -> None:
        draw = torch.Generator().manual_seed(3)

        def weights(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=draw, dtype=torch.float64) / size[0] ** 0.5

        self.vocab_size = vocab_size
        self.layer_count = layers
        self.target_tokens = None if target_tokens is None else torch.tensor(target_tokens)
        self._projection = weights(self.feature_size, HIDDEN)
        self._embedding = weights(vocab_size, HIDDEN) * vocab_size**0.5
        self._mix = weights(2 * HIDDEN, HIDDEN)
        self._qkv = [weights(HIDDEN, 3 * HIDDEN) for _ in range(layers)]
        self._places = weights(1000, HIDDEN) * 8
        self._out = weights(HIDDEN, vocab_size if target_tokens is None else len(target_tokens)) * 4
        self.forwards: list[int] = []
        """Rows of each forward."""
        self.projected = 0
        """Positions whose features were projected."""
        self.outputs = 0
        """How often logits were asked for."""
        self.fail_after: int | None = None
        """Layers until the next forward fails."""

    def settle(self) -> None:
        pass

    def new_cache(self, row_limit: int) -> TreeCache:
        return TreeCache(CacheShape(0, self.layer_count, 1, HIDDEN, self.dtype, self.device), row_limit)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        self.projected += len(features)
        return torch.tanh(features @ self._projection)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._embedding[tokens]

    def output(self, states: torch.Tensor) -> torch.Tensor:
        self.outputs += 1
        return states @ self._out

    def enter(self, embeds: torch.Tensor, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.cat([embeds, states], -1) @ self._mix) + self._places[positions]

    def __call__(self, embeds: torch.Tensor, states: torch.Tensor, cache: TreeCache, batch: Batch) -> torch.Tensor:
        self.forwards.append(batch.count)
        hidden = self.enter(embeds, states, torch.from_numpy(batch.positions))
        seen = torch.from_numpy(np.log(cache.mask().astype(float) + 1e-300))
        seen[seen < -1] = -torch.inf
        for layer in range(self.layer_count):
            query, key, value = (hidden @ self._qkv[layer]).chunk(3, -1)
            keys, values = cache.update(key[None, None], value[None, None], layer)
            if self.fail_after is not None:
                self.fail_after -= 1
                if self.fail_after < 0:
                    self.fail_after = None
                    raise RuntimeError("the head fails")
            hidden = hidden + torch.softmax(query @ keys[0, 0].T + seen, -1) @ values[0, 0]
        return torch.tanh(hidden)

    def chain(self, embeds: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Output states (n, hidden) of rows 0 .. n - 1, each of which sees those before it and itself."""
        count = len(embeds)
        hidden = self.enter(embeds, states, torch.arange(count))
        future = torch.ones(count, count).triu(1).bool()
        for weights in self._qkv:
            query, key, value = (hidden @ weights).chunk(3, -1)
            hidden = hidden + torch.softmax((query @ key.T).masked_fill(future, -torch.inf), -1) @ value
        return torch.tanh(hidden)


def chain_output(head: Any, embeds: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Output states (n, hidden) of rows in a chain: a head that cannot tell by itself is asked over an empty cache."""
    if isinstance(head, SmallHead):
        return head.chain(embeds, states)
    head.settle()
    cache = head.new_cache(len(embeds))
    output: torch.Tensor = head(embeds, states, cache, cache.begin(chain([0] * len(embeds))))
    return output


def from_scratch(head: Any, tokens: list[int], features: torch.Tensor) -> torch.Tensor:
    """Output states (n - 1, hidden) of the rows of a path of n tokens from position 0 on, by definition.

    The row at position i takes the state of position i - 1: that of the features (k, features) while there are some,
    the output of the row before after that.
    """
    embeds = head.embed(torch.tensor(tokens[1:]))
    states = head.project(features)[: len(tokens) - 1]
    output = chain_output(head, embeds[: len(states)], states)
    while len(states) < len(embeds):
        states = torch.cat([states, output[-1:]])
        output = chain_output(head, embeds[: len(states)], states)
    return output
