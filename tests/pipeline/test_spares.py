"""A spare stands in for a stage that does not come back, whichever it is, and for a spare that is lost itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from flowspec.client import Client
from flowspec.roles.spare import SpareNode
from flowspec.roles.stage import StageNode
from flowspec.topology import Topology
from flowspec.transport.base import Transport
from flowspec.transport.memory import Faults, MemoryTransport
from flowspec.transport.zeromq import ZeroMQTransport
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, alone, complete, coordinator_first, started

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
QUICK = {"heartbeat_interval": 0.05, "heartbeat_deadline": 0.5, "spare": 0.1}
TOKENS = 60
DEADLINE = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=4)


@asynccontextmanager
async def with_spares(
    model: Path, transport: Transport, spares: int
) -> AsyncIterator[tuple[Running, list[SpareNode], AsyncExitStack]]:
    topology = Topology.local(str(model), 3, dtype="float64", drafter="ngram", timeouts=QUICK, spares=spares)
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        coordinator, stages, waiting = await started(topology, transport, stack)
        client = Client(topology.client_address, transport=transport)
        running = Running(topology, coordinator, stages, client)
        async with coordinator_first(running), client:
            yield running, waiting, stack


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("make", [MemoryTransport, ZeroMQTransport])
async def test_a_spare_takes_the_place_of_any_stage(model: Path, make: type[Transport], index: int) -> None:
    async with with_spares(model, make(), 1) as (running, (spare,), _):
        stream = running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
        lost = False
        async for _ in stream:
            if not lost and len(stream.generation.token_ids) > 10:
                lost = True
                await running.stages[index].close()
        assert list(stream.generation.token_ids) == alone(model, PROMPT, TOKENS)
        assert spare.stage is not None
        assert spare.stage.name == running.stages[index].name
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)


async def test_a_stage_that_comes_back_late_waits_until_its_spare_is_lost(model: Path) -> None:
    transport = MemoryTransport()
    async with with_spares(model, transport, 1) as (running, (spare,), stack):
        await running.stages[1].close()
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        again = await stack.enter_async_context(StageNode(running.topology, "stage-2", transport=transport))
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        assert again.readiness
        await spare.close()
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        assert not again.readiness


async def test_a_second_spare_stands_in_for_the_first(model: Path) -> None:
    async with with_spares(model, MemoryTransport(), 2) as (running, spares, _):
        await running.stages[2].close()
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        first = next(spare for spare in spares if spare.stage is not None)
        await first.close()
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        (second,) = (spare for spare in spares if spare is not first)
        assert second.stage is not None


async def test_a_spare_that_is_taken_for_lost_stands_by_again(model: Path) -> None:
    transport = MemoryTransport()
    async with with_spares(model, transport, 1) as (running, (spare,), stack):
        await running.stages[0].close()
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        before = spare.incarnation
        await stack.enter_async_context(StageNode(running.topology, "stage-1", transport=transport))
        running.coordinator.stage_died("spare-1", "it was said to be dead")
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        while spare.stage is not None:
            await running.client.status()
        assert spare.incarnation != before


async def test_a_dead_link_behind_a_spare_is_noticed_like_any_other(model: Path) -> None:
    transport = MemoryTransport()
    timeouts = {**QUICK, "progress": 0.3}
    topology = Topology.local(str(model), 3, dtype="float64", drafter="ngram", timeouts=timeouts, spares=2)
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        coordinator, stages, _ = await started(topology, transport, stack)
        running = Running(topology, coordinator, stages, Client(topology.client_address, transport=transport))
        async with coordinator_first(running), running.client:
            await stages[1].close()
            assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
            peer = coordinator.handshake.peers["stage-2"]
            assert peer.hello is not None
            cut = peer.hello.incarnation

            def lost(hop: int, message: object) -> bool:
                # Until the node behind it was given up: to whoever comes then, there is another link.
                return hop == 1 and peer.hello is not None and peer.hello.incarnation == cut

            stream = running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
            async for _ in stream:
                transport.faults = Faults(drop_forward=lost)
            assert list(stream.generation.token_ids) == alone(model, PROMPT, TOKENS)
            assert peer.hello.incarnation != cut
