"""Whole pipelines in one process: real roles, small random models, the memory transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from flowspec.client import Client, Generation
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.spare import SpareNode
from flowspec.roles.stage import StageNode
from flowspec.schedule.events import PipeMeasured, PipeProfile
from flowspec.topology import Topology
from flowspec.transport.base import Transport
from flowspec.transport.memory import MemoryTransport


@dataclass
class Running:
    topology: Topology
    coordinator: Coordinator
    stages: list[StageNode]
    client: Client


async def started(
    topology: Topology, transport: Transport, stack: AsyncExitStack
) -> tuple[Coordinator, list[StageNode], list[SpareNode]]:
    """All nodes of `topology`, READY; they end with `stack`, the coordinator first."""
    spares = [
        await stack.enter_async_context(SpareNode(topology, spare.name, transport=transport))
        for spare in topology.spares
    ]
    stages = [
        await stack.enter_async_context(StageNode(topology, stage.name, transport=transport))
        for stage in topology.stages
    ]
    coordinator = await stack.enter_async_context(Coordinator(topology, transport=transport))
    await coordinator.ready()
    return coordinator, stages, spares


@asynccontextmanager
async def pipeline(
    model: Path, stages: int, *, transport: MemoryTransport | None = None, dtype: str = "float64", **overrides: Any
) -> AsyncIterator[Running]:
    """All nodes READY, and a client connected."""
    transport = transport or MemoryTransport()
    topology = Topology.local(str(model), stages, dtype=dtype, **overrides)
    async with AsyncExitStack() as stack:
        coordinator, nodes, _ = await started(topology, transport, stack)
        # Toy stages are so fast that guessing would not pay, and the policy would rightly hardly guess.
        coordinator.apply(PipeMeasured(PipeProfile((((1, 0.06), (64, 0.1)),) * stages)))
        client = await stack.enter_async_context(Client(topology.client_address, transport=transport))
        yield Running(topology, coordinator, nodes, client)


@asynccontextmanager
async def coordinator_first(running: Running) -> AsyncIterator[None]:
    """Ends the coordinator before what was opened outside: it waits a while for the answers of stages that are gone."""
    try:
        yield
    finally:
        await running.coordinator.close()


async def complete(running: Running, prompt: Sequence[int], policy: str, **options: Any) -> Generation:
    return await running.client.generate(
        prompt_token_ids=list(prompt), policy=policy, **{"max_new_tokens": 24, "ignore_eos": True, **options}
    )


def alone(model: Path, prompt: Sequence[int], max_new_tokens: int, dtype: torch.dtype = torch.float64) -> list[int]:
    """What transformers writes by itself, greedily, EOS ignored."""
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    network.generation_config.eos_token_id = None
    output = network.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt) :]]
