"""A drafter that reads features and writes down what it was given, around any drafter that makes the guesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flowspec.drafting.drafter import Children, Drafter, Wanted, always, build_drafter
from flowspec.model.weights import Checkpoint
from flowspec.roles import coordinator as coordinator_module
from flowspec.schedule.events import GrowTree
from flowspec.topology import Topology
from flowspec.transport.base import Sender, StageChannels
from flowspec.transport.memory import MemoryTransport
from flowspec.wire.messages import FINAL, Features, Message
from flowspec.wire.parameters import SamplingParameters


class ReadingDrafter:
    """Implements `Drafter`; fails the test when a position comes twice, or out of order."""

    name = "reading"

    def __init__(self, inner: Drafter, taps: tuple[int, ...]) -> None:
        self.inner = inner
        self.taps = taps
        self.weight_bytes = inner.weight_bytes
        self.layers = inner.layers
        self.read: dict[str, list[torch.Tensor]] = {}
        self.problems: list[str] = []
        self.fails = False

    def features(self, session: str) -> torch.Tensor:
        """All that came for a session, (positions, sum of the widths)."""
        return torch.cat(self.read[session])

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        self.read[session] = []
        self.inner.open(session, sampling, row_limit)

    def close(self, session: str) -> None:
        self.inner.close(session)

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        if self.fails:
            raise RuntimeError("no features, please")
        expected = sum(map(len, self.read[session]))
        if first != expected or features.device.type != "cpu":
            self.problems.append(f"{session}: {first} came where {expected} was due")
        self.read[session].append(features.clone())

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        return self.inner.grow(request, width, wanted)


def read_taps(patch: pytest.MonkeyPatch, taps: tuple[int, ...]) -> list[ReadingDrafter]:
    """From now on coordinators get their drafter wrapped; the list holds the drafters that were made."""
    made: list[ReadingDrafter] = []

    def build(topology: Topology, target: Checkpoint) -> Drafter | None:
        inner = build_drafter(topology, target)
        assert inner is not None
        made.append(ReadingDrafter(inner, taps))
        return made[-1]

    patch.setattr(coordinator_module, "build_drafter", build)
    return made


class Teller:
    """What transformers' own forward says of a model's taps."""

    def __init__(self, model: Path, dtype: torch.dtype = torch.float64) -> None:
        self._network: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    @torch.inference_mode()
    def features(self, tokens: Sequence[int], taps: tuple[int, ...]) -> torch.Tensor:
        """(tokens, sum of the widths)."""
        last: list[torch.Tensor] = []
        norm = self._network.model.norm
        hook = norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0][0]))
        try:
            states = self._network(torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
        finally:
            hook.remove()
        # `states` ends with the state after the final norm; the last layer's output is what the norm was given.
        depths = [state[0] for state in states[:-1]]
        whole = {**dict(enumerate(depths)), len(depths): last[0], FINAL: states[-1][0]}
        return torch.cat([whole[tap] for tap in taps], 1)


class LossyReturn:
    """A return pipe that loses some features; `loses` is asked for each message of them, from the first on."""

    def __init__(self, inner: Sender, loses: Callable[[Features], bool]) -> None:
        self._inner = inner
        self._loses = loses

    async def send(self, message: Message, tensors: Sequence[torch.Tensor] = ()) -> int:
        if isinstance(message, Features) and self._loses(message):
            return 0
        return await self._inner.send(message, tensors)

    def statistics(self) -> Any:
        return self._inner.statistics()


class WatchedTransport(MemoryTransport):
    """Shows every `Features` on its way, in `sent`, and may lose it."""

    def __init__(self, loses: Callable[[Features], bool] = lambda _: False, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[Features] = []
        self._loses = loses

    def _lost(self, message: Features) -> bool:
        self.sent.append(message)
        return self._loses(message)

    async def open_stage(self, topology: Topology, name: str) -> StageChannels:
        channels = await super().open_stage(topology, name)
        channels.return_out = LossyReturn(channels.return_out, self._lost)
        return channels
