"""The next token, drawn by law: argmax of the processed log-probabilities plus the noise of the position.

Whoever samples at a position (the tail, the drafter, a replay, another device) draws the same token from the same
logits. This module knows no tree, no cache and no model; positions and paths are told to it.

How logits (V,) become a token, all in float64 on the CPU, in this order:

1. penalty      for every token of history and path: logit / r when it is above 0, logit * r otherwise (as CTRL and HF)
                temperature 0 ends here: the token is the argmax, the lowest index among equals
2. temperature  s = (logit - max logit) / T. These are log-probabilities less a constant: no normalising is needed
                The tokens are ordered by s, larger first, among equals the lower index first. w = exp(s)
3. top-k        the first k in that order are kept
4. top-p        the fewest first ones are kept whose w add up to at least p * Z. Sums run along the order; Z is the last
                of these sums under top-k, else the sum of w in vocabulary order (numpy's)
5. min-p        those with w >= min_p are kept (the largest w is 1)
6. noise        the token is the argmax of s + g(seed, position, token) over the kept, the lowest index among equals

What is kept is a set, so it is found without sorting the vocabulary: a cut is a threshold on s, and how many of those
that equal the threshold come in. Noise is computed for the kept only. The result is bit for bit the one of the steps
above.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from flowspec.errors import InvariantViolation
from flowspec.model.cuts import FIRST_LOOK, Floats, Indices, keep, measure
from flowspec.model.noise import HIGHEST, gumbel
from flowspec.model.ranking import DRAFTERS, MODELS, Children, best, check_finite, topmost
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    import torch

TIE = 1e-4
"""Two tokens closer than this, in units of the model's logits, may change places by float32 rounding."""
SMALL_VOCABULARY = 8192
"""Up to this size noise is computed for the whole vocabulary when ranking, and kept per position."""
COLD = 1e-30
"""Temperature below which logits divided by it may be beyond float32."""
NOISE_ROWS = 64
"""Positions whose noise is kept."""

SHARPNESS: Final = 1.8
"""How many times as far apart scores are as a draft's logits. What is scored is not what the draft would draw but what
the target will: the largest sum of logit and known noise, of which only the draft's error is uncertain. An error like
Gumbel noise of scale 1 / SHARPNESS makes that probability the softmax of SHARPNESS * (logit + T * noise). This is
for drafts of which it was not measured (`flowspec.training.sharpness`)."""


def draw_seed() -> int:
    """A random seed, 0 <= seed < 2**63, for a request that gave none."""
    return secrets.randbits(63)


class TokenHistory:
    """Which tokens have occurred: what the repetition penalty asks. Costs a byte per vocabulary entry."""

    def __init__(self, vocab_size: int) -> None:
        self._present = np.zeros(vocab_size, dtype=np.bool_)

    def add(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._present[token] = True

    def __contains__(self, token: int) -> bool:
        return bool(self._present[token])

    def tokens(self) -> Indices:
        """The vocabulary indices that have occurred, increasing."""
        return np.flatnonzero(self._present)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How clear a choice was. Distances are in units of the model's logits, where rounding comes in.

    Above temperature 1, where what is compared is closer together than logits, they are in its units: log-probability.
    """

    token: int
    runner_up: int | None
    """The second best of the kept tokens; None when only one was kept."""
    gap: float
    """By how much `token` beats `runner_up`, noise included; infinite without one."""
    cut_distance: float
    """How far the nearest cut is from changing the choice: from throwing `token` out, or from letting in one that
    would beat it. Infinite when no cut can."""

    @property
    def is_tie(self) -> bool:
        """Rounding alone could have chosen otherwise."""
        return min(self.gap, self.cut_distance) < TIE


class Sampler:
    """One session's law of sampling. Not safe for two threads at once: it keeps the noise of recent positions.

    `vocab_size` is the number of logits in a row. Where a row covers only a part of the vocabulary, `ids` (vocab_size,)
    names the token of each logit, increasing: noise, history, paths and all tokens that are returned go by these ids,
    cuts and log-probabilities are over the part. `sharpness` is that of what is ranked.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        vocab_size: int,
        ids: Indices | None = None,
        *,
        sharpness: float = SHARPNESS,
    ) -> None:
        if ids is not None and (len(ids) != vocab_size or (np.diff(ids) <= 0).any()):
            raise InvariantViolation("the ids of a part of the vocabulary must increase, one for each logit")
        self.parameters = parameters
        self.vocab_size = vocab_size
        self._ids = ids
        # Noised scores are 1 / T times as far apart as logits; at temperature 0 nothing was divided.
        self._sharpness = sharpness * (parameters.temperature or 1.0)
        self.needs_history = parameters.repetition_penalty != 1.0
        self._all = np.arange(vocab_size)
        self._uncut = not 0 < parameters.top_k < vocab_size and parameters.top_p >= 1.0 and parameters.min_p <= 0.0
        self._noise: dict[int, Floats] = {}

    def sample(
        self, logits: torch.Tensor, position: int, history: TokenHistory | None = None, path: Sequence[int] = ()
    ) -> int:
        """The token at `position`, given the model's `logits` (V,) after the token before it.

        `history` and `path` together are the tokens before it, for the penalty; else they are not looked at.
        Raises `PipelineError` when the logits have no finite maximum.
        """
        values = self._penalised(numbers(logits), history, path)
        if self.parameters.temperature == 0.0:
            token = int(values.argmax())
            check_finite(values[token : token + 1], [position], MODELS)
            return self._id(token)
        s = self._scaled(values, [position])
        kept = self._kept(s)
        if kept is None:
            kept = self._contenders(s, position)
        return self._id(int(kept[(s[kept] + gumbel(self.parameters.seed, position, self._named(kept))).argmax()]))

    def rank(
        self,
        logits: torch.Tensor,
        positions: Sequence[int],
        count: int,
        history: TokenHistory | None = None,
        paths: Sequence[Sequence[int]] = (),
    ) -> list[Children]:
        """What a drafter would try first: per row of `logits` (n, V) at most `count` pairs (token, score), best first.

        Temperature 0: the most probable tokens. Above: those that the *same noise* favours. A score is the logarithm
        of how probable it is that the target draws the token (see `SHARPNESS`), over what the cuts keep: 0 for a sole
        candidate, and scores add up along a path. The first is what `sample` would draw; in vocabularies above 8,192
        as long as that is among the 1,024 most probable.
        """
        ranked = self._rank(numbers(logits), positions, count, history, paths)
        if self._ids is None:
            return ranked
        return [[(self._id(index), score) for index, score in row] for row in ranked]

    def _rank(
        self,
        values: npt.NDArray[np.floating],
        positions: Sequence[int],
        count: int,
        history: TokenHistory | None,
        paths: Sequence[Sequence[int]],
    ) -> list[Children]:
        """As `rank`, by index."""
        if self.needs_history:
            penalised = [self._penalised(row, history, paths[i] if paths else ()) for i, row in enumerate(values)]
            values = np.stack(penalised)
        if self.parameters.temperature == 0.0:
            return best(values, positions, count, self._sharpness)
        if self._uncut and self.vocab_size <= SMALL_VOCABULARY:
            # The whole vocabulary, for every token that is expanded: in the precision of the logits where that reaches.
            exact = np.float64 if self.parameters.temperature < COLD else values.dtype
            scaled = self._scaled(values, positions, exact, DRAFTERS)
            for s, position in zip(scaled, positions, strict=True):
                s += self._noise_of(position)
            return best(scaled, positions, count, self._sharpness)
        if self._uncut:
            return self._of_the_likeliest(values, positions, count)
        scaled = self._scaled(values, positions, whose=DRAFTERS)
        return [self._favoured(s, position, count) for s, position in zip(scaled, positions, strict=True)]

    def explain(
        self, logits: torch.Tensor, position: int, history: TokenHistory | None = None, path: Sequence[int] = ()
    ) -> Explanation:
        """Which token `sample` draws and how near it came to another; by full sorts, so slow."""
        values = self._penalised(numbers(logits), history, path).astype(np.float64)
        parameters = self.parameters
        if parameters.temperature == 0.0:
            check_finite(values.max(keepdims=True), [position], MODELS)
            order = np.argsort(-values, kind="stable")[:2]
            gap = float(values[order[0]] - values[order[1]]) if len(order) > 1 else math.inf
            second = self._id(int(order[1])) if len(order) > 1 else None
            return Explanation(self._id(int(order[0])), second, gap, math.inf)
        s = self._scaled(values, [position])
        cuts = measure(s, parameters.top_k, parameters.top_p, parameters.min_p)
        order = self._named(cuts.order)
        noised = cuts.s + gumbel(parameters.seed, position, order)
        ranks = np.argsort(-noised[: cuts.kept], kind="stable")
        chosen = int(ranks[0])
        rivals = cuts.kept + np.flatnonzero(noised[cuts.kept :] >= noised[chosen])
        unit = min(1.0, parameters.temperature)
        distance = unit * min([cuts.of(chosen), *(cuts.of(int(rival)) for rival in rivals)])
        if len(ranks) == 1:
            return Explanation(int(order[chosen]), None, math.inf, distance)
        runner_up = int(ranks[1])
        gap = unit * float(noised[chosen] - noised[runner_up])
        return Explanation(int(order[chosen]), int(order[runner_up]), gap, distance)

    def _named(self, indices: Indices) -> Indices:
        """Vocabulary ids of the logits at `indices`."""
        return indices if self._ids is None else self._ids[indices]

    def _id(self, index: int) -> int:
        return index if self._ids is None else int(self._ids[index])

    def _penalised(
        self, values: npt.NDArray[np.floating], history: TokenHistory | None, path: Sequence[int]
    ) -> npt.NDArray[np.floating]:
        if not self.needs_history:
            return values
        seen = np.array(path, dtype=np.int64)
        if history is not None:
            seen = np.concatenate((history.tokens(), seen))
        # A draft model may have a smaller vocabulary than its target.
        seen = seen[seen < len(values)] if self._ids is None else np.flatnonzero(np.isin(self._ids, seen))
        values = values.astype(np.float64)
        penalty, before = self.parameters.repetition_penalty, values[seen]
        values[seen] = np.where(before > 0, before / penalty, before * penalty)
        return values

    def _scaled(
        self,
        values: npt.NDArray[np.floating],
        positions: Sequence[int],
        dtype: npt.DTypeLike = np.float64,
        whose: str = MODELS,
    ) -> npt.NDArray[Any]:
        """Log-probabilities less that of the most probable token, as `dtype`: of (V,) or of (n, V)."""
        s = values.astype(dtype)
        greatest = s.max(axis=-1, keepdims=True)
        check_finite(greatest, positions, whose)
        s -= greatest
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best become impossible, which is right
            s /= self.parameters.temperature
        return s

    def _kept(self, s: Floats) -> Indices | None:
        return keep(s, self.parameters.top_k, self.parameters.top_p, self.parameters.min_p)

    def _contenders(self, s: Floats, position: int) -> Indices:
        """All tokens but those that lose to the most probable one whatever their noise is."""
        if self.vocab_size <= SMALL_VOCABULARY:
            return self._all
        top = np.array([s.argmax()])
        return np.flatnonzero(s >= gumbel(self.parameters.seed, position, self._named(top))[0] - HIGHEST)

    def _of_the_likeliest(
        self, values: npt.NDArray[np.floating], positions: Sequence[int], count: int
    ) -> list[Children]:
        """Of a large vocabulary without cuts: noise is added to the `FIRST_LOOK` most probable tokens only."""
        import torch

        likeliest = np.sort(topmost(torch.from_numpy(values), FIRST_LOOK)[1].numpy(), axis=1)
        scores = self._scaled(np.take_along_axis(values, likeliest, axis=1), positions, whose=DRAFTERS)
        for s, position, tokens in zip(scores, positions, likeliest, strict=True):
            s += gumbel(self.parameters.seed, position, self._named(tokens))
        ranked = best(scores, positions, count, self._sharpness)
        return [
            [(int(tokens[index]), score) for index, score in row] for tokens, row in zip(likeliest, ranked, strict=True)
        ]

    def _favoured(self, s: Floats, position: int, count: int) -> Children:
        """Of what the cuts keep."""
        kept = self._kept(s)
        assert kept is not None
        if self.vocab_size > SMALL_VOCABULARY and len(kept) > FIRST_LOOK:
            kept = keep(s, FIRST_LOOK, 1.0, 0.0)
            assert kept is not None
        if self.vocab_size <= SMALL_VOCABULARY:
            noise = self._noise_of(position)[kept]
        else:
            noise = gumbel(self.parameters.seed, position, self._named(kept))
        (ranked,) = best((s[kept] + noise)[None], [position], count, self._sharpness)
        return [(int(kept[index]), score) for index, score in ranked]

    def _noise_of(self, position: int) -> Floats:
        noise = self._noise.get(position)
        if noise is None:
            noise = gumbel(self.parameters.seed, position, self._named(self._all))
            if len(self._noise) >= NOISE_ROWS:
                del self._noise[next(iter(self._noise))]
            self._noise[position] = noise
        return noise


def numbers(logits: torch.Tensor) -> npt.NDArray[np.floating]:
    """Logits as a numpy array on the CPU: float64 stays, all else becomes float32, without a copy where possible."""
    logits = logits.detach().cpu()
    if logits.element_size() != 8:
        logits = logits.float()
    array: npt.NDArray[np.floating] = logits.numpy()
    return array
