"""Nodes that are told to stop while requests run and come: nobody is refused, and every stream is what it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowspec.client import Client, Generation
from flowspec.errors import PeerTimeout, PipelineError
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.spare import SpareNode
from flowspec.roles.stage import StageNode
from flowspec.runtime.node import Node
from flowspec.topology import Topology
from flowspec.transport.base import Transport
from flowspec.transport.memory import MemoryTransport
from flowspec.transport.zeromq import ZeroMQTransport
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, alone, complete, coordinator_first, started

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 17}
PATIENT = {"heartbeat_interval": 0.05, "heartbeat_deadline": 5.0, "spare": 0.1}
"""Nobody here is lost by silence."""

TOKENS = 40
LONG = 120
"""Tokens of a stream that is in the middle when what is tested is over, or nearly so."""
DEADLINE = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=4)


class Pipeline:
    """Real roles, each of which may be stopped, and started again."""

    def __init__(self, running: Running, transport: Transport, spares: list[SpareNode], stack: AsyncExitStack) -> None:
        self.running = running
        self.transport = transport
        self.spares = spares
        self.client = running.client
        self._stack = stack

    def stage(self, index: int) -> StageNode:
        return self.running.stages[index]

    async def start_stage(self, index: int) -> None:
        stage = StageNode(self.running.topology, self.stage(index).name, transport=self.transport)
        self.running.stages[index] = await self._stack.enter_async_context(stage)

    async def start_coordinator(self) -> None:
        again = Coordinator(self.running.topology, transport=self.transport)
        self.running.coordinator = await self._stack.enter_async_context(again)

    async def until_waiting(self, count: int = 1) -> None:
        while (await self.client.status()).waiting < count:
            pass

    async def state_of(self, name: str) -> str:
        return next(node.state for node in (await self.client.status()).nodes if node.name == name)


@asynccontextmanager
async def piped(
    model: Path, *, spares: int = 0, transport: Transport | None = None, silence: float = 30.0, **timeouts: float
) -> AsyncIterator[Pipeline]:
    transport = transport or MemoryTransport()
    topology = Topology.local(
        str(model), 3, dtype="float64", drafter="ngram", timeouts={**PATIENT, **timeouts}, spares=spares
    )
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        coordinator, stages, waiting = await started(topology, transport, stack)
        client = Client(topology.client_address, transport=transport, silence_timeout=silence)
        running = Running(topology, coordinator, stages, client)
        async with coordinator_first(running), client:
            yield Pipeline(running, transport, waiting, stack)


async def drained(node: Node) -> None:
    """As Ctrl-C once: what runs may end by itself."""
    node.drain()
    await node.wait()
    await node.close()


async def stopped(node: Node) -> None:
    """As Ctrl-C twice."""
    node.stop()
    await node.close()


class Streams:
    """A greedy and a sampled stream that run side by side, and what they ought to write."""

    def __init__(self, pipeline: Pipeline, tokens: int = TOKENS) -> None:
        self._model = Path(pipeline.running.topology.draft_node.model)
        self._pipeline = pipeline
        self._tokens = tokens
        self._begun = [asyncio.Event(), asyncio.Event()]
        self._tasks: list[asyncio.Task[Generation]] = []
        self._undisturbed: Generation | None = None

    async def begin(self) -> None:
        """Return when both have written something."""
        self._undisturbed = await self._whole(SAMPLED)
        self._tasks = [
            asyncio.ensure_future(self._stream(event, options))
            for event, options in zip(self._begun, ({}, SAMPLED), strict=True)
        ]
        for event in self._begun:
            await event.wait()

    async def are_exact(self) -> None:
        greedy, sampled = await asyncio.gather(*self._tasks)
        assert list(greedy.token_ids) == alone(self._model, PROMPT, self._tokens)
        assert self._undisturbed is not None
        assert (sampled.token_ids, sampled.text) == (self._undisturbed.token_ids, self._undisturbed.text)

    async def _whole(self, options: dict[str, Any]) -> Generation:
        return await complete(self._pipeline.running, PROMPT, "flowspec", max_new_tokens=self._tokens, **options)

    async def _stream(self, begun: asyncio.Event, options: dict[str, Any]) -> Generation:
        stream = self._pipeline.client.stream(
            prompt_token_ids=PROMPT, max_new_tokens=self._tokens, ignore_eos=True, **options
        )
        async for _ in stream:
            begun.set()
        return stream.generation


# ---- a stage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MemoryTransport, ZeroMQTransport])
async def test_who_comes_while_a_stage_drains_waits_in_line_for_its_successor(
    model: Path, make: type[Transport]
) -> None:
    async with piped(model, transport=make()) as pipeline:
        streams = Streams(pipeline)
        await streams.begin()
        draining = asyncio.ensure_future(drained(pipeline.stage(1)))
        while await pipeline.state_of("stage-2") != "leaving":
            pass
        late = asyncio.ensure_future(complete(pipeline.running, PROMPT, "flowspec"))
        await pipeline.until_waiting()
        await streams.are_exact()
        await draining
        await pipeline.start_stage(1)
        assert list((await late).token_ids) == alone(model, PROMPT, 24)


async def test_what_outlasts_the_drain_of_a_stage_goes_on_at_its_successor(model: Path) -> None:
    async with piped(model, drain=0.01) as pipeline:
        streams = Streams(pipeline, LONG)
        await streams.begin()
        await drained(pipeline.stage(0))
        await pipeline.start_stage(0)
        await streams.are_exact()


async def test_a_stage_that_stops_is_missed_without_waiting_for_its_silence(model: Path) -> None:
    async with piped(model, heartbeat_deadline=DEADLINE, recovery=0.2) as pipeline:
        await stopped(pipeline.stage(2))
        while await pipeline.state_of("stage-3") != "lost":
            pass
        with pytest.raises(PipelineError, match="stage-3 was stopped"):
            await complete(pipeline.running, PROMPT, "flowspec")


async def test_who_waits_for_the_successor_of_a_drained_stage_hears_in_time_that_there_is_none(model: Path) -> None:
    async with piped(model, recovery=0.2) as pipeline:
        streams = Streams(pipeline)
        await streams.begin()
        draining = asyncio.ensure_future(drained(pipeline.stage(1)))
        while await pipeline.state_of("stage-2") != "leaving":
            pass
        late = asyncio.ensure_future(complete(pipeline.running, PROMPT, "flowspec"))
        await streams.are_exact()
        await draining
        with pytest.raises(PipelineError, match=r"stage-2 was stopped.*within 0\.2 s"):
            await late


async def test_a_spare_takes_over_from_a_stage_that_drains_as_soon_as_somebody_waits(model: Path) -> None:
    async with piped(model, spares=1, spare=DEADLINE) as pipeline:
        streams = Streams(pipeline, LONG)
        await streams.begin()
        draining = asyncio.ensure_future(drained(pipeline.stage(1)))
        while await pipeline.state_of("stage-2") != "leaving":
            pass
        late = complete(pipeline.running, PROMPT, "flowspec")
        assert list((await late).token_ids) == alone(model, PROMPT, 24)
        assert pipeline.spares[0].stage is not None
        await draining
        await streams.are_exact()


async def test_a_spare_that_drains_gives_its_place_to_another(model: Path) -> None:
    async with piped(model, spares=2) as pipeline:
        await stopped(pipeline.stage(2))
        assert list((await complete(pipeline.running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        first = next(spare for spare in pipeline.spares if spare.stage is not None)
        streams = Streams(pipeline)
        await streams.begin()
        await drained(first)
        await streams.are_exact()
        assert list((await complete(pipeline.running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        (second,) = (spare for spare in pipeline.spares if spare is not first)
        assert second.stage is not None


# ---- the coordinator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MemoryTransport, ZeroMQTransport])
async def test_streams_outlive_a_coordinator_that_is_stopped_and_started_again(
    model: Path, make: type[Transport]
) -> None:
    async with piped(model, transport=make()) as pipeline:
        streams = Streams(pipeline, LONG)
        await streams.begin()
        await stopped(pipeline.running.coordinator)
        await pipeline.start_coordinator()
        await streams.are_exact()


async def test_a_coordinator_that_drains_sends_the_new_and_the_long_on_to_the_next(model: Path) -> None:
    async with piped(model, drain=0.3) as pipeline:
        streams = Streams(pipeline, LONG)
        await streams.begin()
        draining = asyncio.ensure_future(drained(pipeline.running.coordinator))
        while not (await pipeline.client.status()).draining:
            pass
        late = asyncio.ensure_future(complete(pipeline.running, PROMPT, "flowspec"))
        await draining
        await pipeline.start_coordinator()
        assert list((await late).token_ids) == alone(model, PROMPT, 24)
        await streams.are_exact()


async def test_without_a_next_coordinator_the_client_tells_in_time_with_the_tokens_so_far(model: Path) -> None:
    async with piped(model, silence=0.3) as pipeline:
        stream = pipeline.client.stream(prompt_token_ids=PROMPT, max_new_tokens=LONG, ignore_eos=True)
        chunks = aiter(stream)
        await anext(chunks)
        await stopped(pipeline.running.coordinator)
        with pytest.raises(PeerTimeout, match="sign of life") as caught:
            async for _ in chunks:
                pass
        written = list(caught.value.partial.token_ids)
        assert written == alone(model, PROMPT, len(written))


async def test_a_request_that_comes_while_a_coordinator_starts_waits_for_the_stages(model: Path) -> None:
    async with piped(model) as pipeline:
        await stopped(pipeline.stage(1))
        await stopped(pipeline.running.coordinator)
        await pipeline.start_coordinator()
        early = asyncio.ensure_future(complete(pipeline.running, PROMPT, "flowspec"))
        while not (await pipeline.client.status()).sessions:
            pass
        await pipeline.start_stage(1)
        assert list((await early).token_ids) == alone(model, PROMPT, 24)


# ---- the coordinator, while a spare stands in ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "index"), [(MemoryTransport, 0), (MemoryTransport, 2), (ZeroMQTransport, 0), (ZeroMQTransport, 1)]
)
async def test_a_spare_keeps_its_place_when_the_coordinator_is_started_again(
    model: Path, make: type[Transport], index: int
) -> None:
    async with piped(model, spares=1, transport=make()) as pipeline:
        (spare,) = pipeline.spares
        await stopped(pipeline.stage(index))
        streams = Streams(pipeline, LONG)
        await streams.begin()
        held, incarnation = spare.stage, spare.incarnation
        await stopped(pipeline.running.coordinator)
        await pipeline.start_coordinator()
        await streams.are_exact()
        assert spare.stage is held is not None
        assert spare.incarnation == incarnation


async def test_a_stage_that_is_there_before_its_spare_has_its_place_at_the_next_coordinator(model: Path) -> None:
    """Whoever comes first: the other one stands by, and takes over when that one is gone."""
    async with piped(model, spares=1) as pipeline:
        (spare,) = pipeline.spares
        await stopped(pipeline.stage(1))
        assert list((await complete(pipeline.running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        await stopped(pipeline.running.coordinator)
        await pipeline.start_stage(1)
        await pipeline.start_coordinator()
        await pipeline.running.coordinator.ready()
        assert list((await complete(pipeline.running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        if pipeline.stage(1).readiness:
            await stopped(spare)
        else:
            while spare.stage is not None:
                await pipeline.client.status()
            await stopped(pipeline.stage(1))
        assert list((await complete(pipeline.running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
