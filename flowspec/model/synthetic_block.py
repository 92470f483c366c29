"""Layers of the synthetic model: no weights, no keys and values, no arithmetic.

A stage does with it all that it does with a block of real layers: rows, masks' bookkeeping, verdicts, pruning. Hidden
states are zeros that nobody reads; what is sampled after a row follows from its position. How long a forward takes is
an emulated device's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flowspec.model.block import LayerBlock, Observe
from flowspec.model.cache import CacheShape, TreeCache
from flowspec.model.rows import Batch
from flowspec.model.sampling import TokenHistory
from flowspec.synthetic.model import SyntheticModel
from flowspec.synthetic.text import SyntheticText, mix
from flowspec.wire.parameters import SamplingParameters


class SyntheticSampler:
    """Samples the text of one request, whatever the logits."""

    needs_history = False

    def __init__(self, text: SyntheticText) -> None:
        self._text = text

    def sample(
        self, logits: torch.Tensor, position: int, history: TokenHistory | None = None, path: Sequence[int] = ()
    ) -> int:
        """The token at `position`."""
        return self._text.token(position)


class SyntheticBlock:
    """Layers [first, end) of `model`, with the faces of `LayerBlock`."""

    def __init__(self, model: SyntheticModel, first: int, end: int) -> None:
        self.first_layer = first
        self.end_layer = end
        self.is_first = first == 0
        self.layer_count = model.layer_count
        self.is_tail = end == model.layer_count
        self.hidden_size = model.hidden_size
        self.vocab_size = model.vocab_size
        self.context_limit = model.context_limit
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.weight_bytes = 0
        self.row_bytes = 0
        self._seed = model.seed

    def new_cache(self, row_limit: int) -> TreeCache:
        """An empty cache for a session of at most `row_limit` rows, which hold nothing."""
        return TreeCache(CacheShape(self.first_layer, 0, 0, 0, self.dtype, self.device), row_limit)

    def taps_here(self, taps: Sequence[int]) -> tuple[int, ...]:
        """None: there are no hidden states that a drafter could read."""
        return ()

    def sampler(self, parameters: SamplingParameters) -> SyntheticSampler:
        """What draws the tokens of one session at the tail."""
        return SyntheticSampler(SyntheticText(mix(self._seed, parameters.seed)))

    def forward(
        self,
        inputs: torch.Tensor,
        cache: TreeCache,
        batch: Batch,
        alive: Callable[[], bool] = lambda: True,
        observe: Observe | None = None,
    ) -> torch.Tensor | None:
        """Hidden states (q, 1) of nothing."""
        return torch.zeros(len(inputs), self.hidden_size)

    def normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, 1): one value that nobody reads for each row."""
        return hidden


AnyBlock = LayerBlock | SyntheticBlock
"""What a stage holds."""
