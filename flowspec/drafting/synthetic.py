"""The synthetic drafter: guesses the synthetic model's text, and is right as often as it says (see `guesses`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.schedule.events import GrowTree
from flowspec.synthetic.calibration import quality_for
from flowspec.synthetic.guesses import Quality, SyntheticGuesses
from flowspec.synthetic.text import mix
from flowspec.topology.sections import Synthetic
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_QUALITY = 0.6


def quality_of(chosen: Synthetic | None) -> Quality:
    """How good the guesses are that a topology asks for; `ConfigurationError` when no guesses are that good."""
    if chosen is not None and chosen.tokens_per_round is not None:
        return quality_for(chosen.tokens_per_round)
    return Quality(chosen.quality if chosen is not None and chosen.quality is not None else DEFAULT_QUALITY)


class SyntheticDrafter:
    """A `Drafter`. `seed` is the synthetic model's."""

    name = "synthetic"
    weight_bytes = 0
    layers = 0
    taps: tuple[int, ...] = ()

    def __init__(self, seed: int, quality: Quality) -> None:
        self.quality = quality
        self._seed = seed
        self._sessions: dict[str, tuple[int, int, SyntheticGuesses]] = {}
        """Per session its seed, its epoch and what it was given."""

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        seed = mix(self._seed, sampling.seed)
        self._sessions[session] = (seed, 0, SyntheticGuesses(seed, self.quality))

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """There are none."""

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        found = self._sessions.get(request.session)
        if found is None:
            return ()
        seed, epoch, guesses = found
        if request.epoch != epoch:
            guesses = SyntheticGuesses(seed, self.quality)
            self._sessions[request.session] = (seed, request.epoch, guesses)
        return guesses.grow(request, width)
