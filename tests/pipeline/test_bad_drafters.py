"""Drafters that go wrong in whole pipelines: whatever they answer, and if they never do, no token changes."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowspec.drafting.drafter import Children, Wanted, always
from flowspec.roles import coordinator as coordinator_module
from flowspec.schedule.events import GrowTree
from flowspec.wire.parameters import SamplingParameters
from tests.pipeline.running import alone, complete, pipeline
from tests.pipeline.test_exactness import PROMPT, SAMPLED, model_of


class Nonsense:
    """Answers with tokens that do not exist, scores that are no numbers, and tokens that it was not asked about."""

    name = "nonsense"
    weight_bytes = 0
    layers = 0
    taps: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.random = random.Random(0)
        self.steps = 0

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        pass

    def close(self, session: str) -> None:
        pass

    def take_features(self, session: str, epoch: int, first: int, features: torch.Tensor) -> None:
        pass

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        self.steps += 1
        draw = self.random
        tokens = (-1, 10**9, draw.randrange(100), draw.randrange(100), draw.randrange(100))
        scores = (math.nan, math.inf, -math.inf, 5.0, -0.1, -2.0)
        serials = (*request.expand, -5, 10**6)
        return tuple((serial, tuple((token, draw.choice(scores)) for token in tokens)) for serial in serials)


class Failing(Nonsense):
    """Raises at every other step."""

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        answer = super().grow(request, width)
        if self.steps % 2:
            raise RuntimeError("no guesses, please")
        return answer


class Stalling(Nonsense):
    """Never answers, until `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        self.released.wait()
        return ()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of(tmp_path_factory.mktemp("checkpoints"), "llama", False, None)


@pytest.fixture
def stalling() -> Iterator[Stalling]:
    drafter = Stalling()
    yield drafter
    drafter.released.set()


@pytest.mark.parametrize("kind", [Nonsense, Failing])
async def test_nonsense_costs_no_token(monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[Nonsense]) -> None:
    drafter = kind()
    monkeypatch.setattr(coordinator_module, "build_drafter", lambda *_: drafter)
    async with pipeline(model, 3) as running:
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        assert (await complete(running, PROMPT, "flowspec", **SAMPLED)).token_ids == plain.token_ids
    assert drafter.steps > 0


async def test_a_drafter_that_stalls_costs_no_token(
    monkeypatch: pytest.MonkeyPatch, model: Path, stalling: Stalling
) -> None:
    monkeypatch.setattr(coordinator_module, "build_drafter", lambda *_: stalling)
    async with pipeline(model, 3, timeouts={"progress": 0.5}) as running:
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        assert (await complete(running, PROMPT, "flowspec", **SAMPLED)).token_ids == plain.token_ids
        stalling.released.set()
