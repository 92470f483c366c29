"""The synthetic model in real pipelines: whatever runs it, it writes the text of its seed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowspec.client import Client
from flowspec.errors import PipelineError, RequestError
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.schedule.policies import POLICIES
from flowspec.synthetic.text import SyntheticText, mix
from flowspec.topology import Topology
from flowspec.transport.memory import Faults, MemoryTransport
from tests.pipeline.running import complete, pipeline

MODEL = Path("synthetic")
PROMPT = list(range(100, 120))
QUICK = {"each_stage": {"emulate": {"base_ms": 0.2}}}


def text_of(seed: int, count: int, *, model_seed: int = 0, prompt: int = len(PROMPT)) -> list[int]:
    text = SyntheticText(mix(model_seed, seed))
    return [text.token(prompt + index) for index in range(count)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_every_policy_writes_the_text(policy: str) -> None:
    async with pipeline(MODEL, 4, synthetic={"quality": 0.7}, **QUICK) as running:
        result = await complete(running, PROMPT, policy, seed=9, max_new_tokens=40)
        assert list(result.token_ids) == text_of(9, 40)
        assert result.stats is not None
        if policy != "autoregressive":
            assert result.stats.accepted > 0
        again = await complete(running, PROMPT, policy, seed=9, max_new_tokens=40, temperature=0.8)
        assert again.token_ids == result.token_ids


async def test_sixteen_stages() -> None:
    async with pipeline(MODEL, 16, synthetic={"quality": 0.8, "seed": 3}, **QUICK) as running:
        result = await complete(running, PROMPT, "flowspec", seed=1, max_new_tokens=60)
        assert list(result.token_ids) == text_of(1, 60, model_seed=3)
        assert {stage.block.weight_bytes for stage in running.stages} == {0}


@pytest.mark.parametrize("drafter", ["none", "ngram", "synthetic"])
async def test_the_drafter_changes_nothing(drafter: str) -> None:
    async with pipeline(MODEL, 2, drafter=drafter, **QUICK) as running:
        result = await complete(running, PROMPT, "flowspec", seed=2)
        assert list(result.token_ids) == text_of(2, 24)


async def test_an_emulated_network_and_lost_broadcasts_change_nothing() -> None:
    transport = MemoryTransport(seed=4)
    link = {"latency_ms": 0.5, "jitter_ms": 1.0, "rate_mbit": 500.0, "bytes_per_token": 8192, "message_ms": 0.2}
    async with pipeline(MODEL, 3, transport=transport, link=link, **QUICK) as running:
        transport.faults = Faults(dropped=0.4, doubled=0.3, delayed=0.3)
        result = await complete(running, PROMPT, "flowspec", seed=6, max_new_tokens=40)
        transport.faults = Faults()
        assert list(result.token_ids) == text_of(6, 40)


async def test_the_doctor_measures_an_emulated_link_and_leaves_it_free() -> None:
    link = {"latency_ms": 1.0, "rate_mbit": 400.0, "bytes_per_token": 8192, "message_ms": 1.0}
    async with pipeline(MODEL, 2, link=link, **QUICK) as running:
        async with asyncio.timeout(60):
            diagnosis = await running.client.diagnose(payload=1_000_000)
        assert all(found.rate for found in diagnosis.links), "each was measured"
        async with asyncio.timeout(60):
            result = await complete(running, PROMPT, "flowspec", seed=6)
        assert list(result.token_ids) == text_of(6, 24)


async def test_prompts_are_words_and_so_is_the_text() -> None:
    async with pipeline(MODEL, 2, **QUICK) as running:
        result = await running.client.generate("tell me a story", seed=5, max_new_tokens=12)
        assert len(result.prompt_token_ids) == 4
        assert list(result.token_ids) == text_of(5, 12, prompt=4)
        assert len(result.text.split()) == 12
        with pytest.raises(RequestError, match="no chat template"):
            await running.client.generate("tell me a story", chat=True)


async def test_a_profile_is_what_the_scheduler_is_told() -> None:
    transport = MemoryTransport()
    topology = Topology.local("synthetic", 2, profile="slow-link")
    async with (
        StageNode(topology, "stage-1", transport=transport),
        StageNode(topology, "stage-2", transport=transport),
        Coordinator(topology, transport=transport) as coordinator,
    ):
        await coordinator.ready()
        profile = coordinator.scheduler.pipe.profile
    for curve in profile.stages:
        assert dict(curve)[1] == pytest.approx(0.015)
        assert dict(curve)[16] == pytest.approx(0.0172, abs=1e-4)
    assert min(profile.links) >= 0.009


async def test_nodes_with_other_texts_are_refused() -> None:
    transport = MemoryTransport()
    topology = Topology.local("synthetic", 1)
    other = topology.replace(synthetic={"seed": 1})
    async with Coordinator(topology, transport=transport), Client(topology.client_address, transport=transport):
        stage = StageNode(other, "stage-1", transport=transport)
        async with stage:
            with pytest.raises(PipelineError, match="different models"):
                await stage.wait()
