"""Drafters that read the target's hidden states get those of every accepted token, exactly and in order."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from flowspec.client import Generation
from flowspec.roles.feature_outbox import RESEND_SEGMENTS
from flowspec.transport.memory import Faults
from flowspec.wire.messages import FINAL, Features
from tests.pipeline.reading import ReadingDrafter, Teller, WatchedTransport, read_taps
from tests.pipeline.running import Running, alone, complete, pipeline
from tests.pipeline.test_exactness import PROMPT, SAMPLED, model_of, prompt_of

TAPS = (2, 0, 6, FINAL, 3)
"""Of a model of six layers, in no order: two of them at the tail at any number of stages."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def held(running: Running) -> int:
    return sum(stage._sessions.outboxes.bytes_held for stage in running.stages)


async def emptied(running: Running) -> None:
    """Every stage has closed every session."""
    async with asyncio.timeout(10):
        for stage in running.stages:
            await stage._sessions.wait_empty()
    assert held(running) == 0


def check(drafter: ReadingDrafter, teller: Teller, prompt: list[int], result: Generation, least: int) -> int:
    """What came for the newest session is what the model says, and is at least `least` positions; returns how many."""
    session = list(drafter.read)[-1]
    assert drafter.problems == []
    features = drafter.features(session)
    tokens = [*prompt, *result.token_ids]
    # The verdict that ends a request may accept more than is told to the client.
    count = min(len(features), len(tokens))
    expected = teller.features(tokens, drafter.taps)
    assert count >= least, (count, least)
    torch.testing.assert_close(features[:count], expected[:count], rtol=1e-9, atol=1e-9)
    return count


@pytest.mark.parametrize("stages", [1, 2, 3, 6])
@pytest.mark.parametrize(("family", "window"), [("llama", None), ("qwen2", 8), ("mistral", 8)])
async def test_every_accepted_position_comes_from_every_tap(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, stages: int, family: str, window: int | None
) -> None:
    model = model_of(checkpoints, family, False, window)
    draft = model_of(checkpoints, "llama", True, None, layers=1)
    teller, expected = Teller(model), alone(model, PROMPT, 24)
    made = read_taps(monkeypatch, TAPS)
    async with pipeline(model, stages, drafter={"kind": "causal-lm", "model": str(draft)}) as running:
        result = await complete(running, PROMPT, "flowspec")
        assert list(result.token_ids) == expected
        check(made[0], teller, PROMPT, result, len(PROMPT) + 16)
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        assert len(made[0].read) == 1, "nobody drafts for this policy, so nobody reads either"
        fast = await complete(running, PROMPT, "flowspec", **SAMPLED)
        assert fast.token_ids == plain.token_ids
        check(made[0], teller, PROMPT, fast, len(PROMPT) + 16)
        await emptied(running)


@pytest.mark.parametrize("length", [1, 2, 64, 65, 300])
async def test_prompts_of_any_length(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    model = model_of(checkpoints, "qwen2", True, None)
    prompt = prompt_of(length)
    made = read_taps(monkeypatch, (1, 3, 5))
    async with pipeline(model, 4, drafter="ngram") as running:
        result = await complete(running, prompt, "flowspec", max_new_tokens=16)
        assert list(result.token_ids) == alone(model, prompt, 16)
        check(made[0], Teller(model), prompt, result, length + 8)
        await emptied(running)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(dropped=1.0), id="all-lost"),
        pytest.param(Faults(dropped=0.4, doubled=0.3), id="lost-and-doubled"),
        pytest.param(Faults(doubled=0.3, delayed=0.5, reordered=0.5), id="doubled-late-and-reordered"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_broadcasts_decide_nothing(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults, temperature: float
) -> None:
    model = model_of(checkpoints, "llama", False, None)
    draft = model_of(checkpoints, "llama", True, None, layers=1)
    teller, sampled = Teller(model), {**SAMPLED, "temperature": temperature}
    made = read_taps(monkeypatch, TAPS)
    for seed in range(2):
        transport = WatchedTransport(seed=seed)
        async with pipeline(
            model, 4, transport=transport, drafter={"kind": "causal-lm", "model": str(draft)}
        ) as running:
            plain = await complete(running, PROMPT, "autoregressive", max_new_tokens=32, **sampled)
            transport.faults = faults
            result = await complete(running, PROMPT, "flowspec", max_new_tokens=32, **sampled)
            transport.faults = Faults()
            assert result.token_ids == plain.token_ids
            check(made[-1], teller, PROMPT, result, len(PROMPT) + 16)
            await emptied(running)


async def test_nothing_is_sent_twice_while_nothing_is_lost(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoints, "llama", False, None)
    made = read_taps(monkeypatch, (1, 3, 5))
    transport = WatchedTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram") as running:
        result = await complete(running, PROMPT, "flowspec", max_new_tokens=64)
        assert list(result.token_ids) == alone(model, PROMPT, 64)
        check(made[0], Teller(model), PROMPT, result, len(PROMPT) + 56)
    for node in ("stage-1", "stage-2", "stage-3"):
        end = 0
        for message in (sent for sent in transport.sent if sent.node == node):
            assert message.first == end
            assert message.count > 0
            end += message.count


@pytest.mark.parametrize("lost", [0, 1, 3])
async def test_what_was_lost_is_sent_again(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    model = model_of(checkpoints, "llama", False, None)
    made = read_taps(monkeypatch, (1, 3, 5))
    seen: list[Features] = []

    def loses(message: Features) -> bool:
        if message.node == "stage-2":
            seen.append(message)
        return message.node == "stage-2" and len(seen) == lost + 1

    transport = WatchedTransport(loses)
    tokens = RESEND_SEGMENTS + 40
    async with pipeline(model, 3, transport=transport, drafter="ngram") as running:
        result = await complete(running, PROMPT, "flowspec", max_new_tokens=tokens)
        assert list(result.token_ids) == alone(model, PROMPT, tokens)
        check(made[0], Teller(model), PROMPT, result, len(PROMPT) + tokens - 16)
        await emptied(running)
    assert len([message for message in seen if message.first == seen[lost].first]) == 2


async def test_a_drafter_that_reads_nothing_costs_nothing(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoints, "llama", False, None)
    made = read_taps(monkeypatch, ())
    transport = WatchedTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram") as running:
        await complete(running, PROMPT, "flowspec")
    assert transport.sent == []
    assert all(parts == [] for parts in made[0].read.values())


async def test_a_drafter_that_fails_to_read_costs_its_features_only(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(checkpoints, "llama", False, None)
    made = read_taps(monkeypatch, (1, 3, 5))
    transport = WatchedTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram") as running:
        made[0].fails = True
        with caplog.at_level(logging.ERROR):
            result = await complete(running, PROMPT, "flowspec", max_new_tokens=64)
        assert list(result.token_ids) == alone(model, PROMPT, 64)
        await emptied(running)
    assert "no features, please" in caplog.text
    assert all(parts == [] for parts in made[0].read.values())
    # The stages have heard that nobody reads any more.
    assert max(message.first for message in transport.sent) < len(PROMPT) + 32


async def test_sessions_side_by_side_get_their_own(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoints, "llama", False, None)
    teller = Teller(model)
    made = read_taps(monkeypatch, (FINAL,))
    prompts = [PROMPT[: 3 + 2 * index] for index in range(4)]
    async with pipeline(model, 3, drafter="ngram") as running:
        results = await asyncio.gather(*(complete(running, prompt, "flowspec") for prompt in prompts))
        await emptied(running)
    by_prompt: dict[int, Any] = {}
    for session in made[0].read:
        features = made[0].features(session)
        for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
            expected = teller.features([*prompt, *result.token_ids], (FINAL,))
            count = min(len(features), len(expected))
            if count >= len(prompt) and torch.allclose(features[:count], expected[:count], rtol=1e-9, atol=1e-9):
                by_prompt[index] = session
    assert sorted(by_prompt) == [0, 1, 2, 3]


async def test_emulated_stages_send_features_while_they_are_busy(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(checkpoints, "llama", False, None)
    made = read_taps(monkeypatch, (1, 3, 5))
    slow: dict[str, Any] = {"each_stage": {"emulate": {"base_ms": 2.0, "per_token_ms": 0.1}}}
    async with pipeline(model, 3, drafter="ngram", **slow) as running:
        result = await complete(running, PROMPT, "flowspec")
        assert list(result.token_ids) == alone(model, PROMPT, 24)
        check(made[0], Teller(model), PROMPT, result, len(PROMPT) + 12)
        await emptied(running)
