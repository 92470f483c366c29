"""Nodes that fail and messages that vanish while requests run: every stream goes on, and is what it would have been."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flowspec.client import Client, Generation
from flowspec.errors import PipelineError
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.transport.memory import Faults, MemoryTransport
from flowspec.wire.messages import Close, Message, Open, Segment
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, alone, complete, coordinator_first, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 17}
QUICK = {"heartbeat_interval": 0.05, "heartbeat_deadline": 0.5}
TOKENS = 60
DEADLINE = 60.0

Act = Callable[[int], Awaitable[None]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=4)


@asynccontextmanager
async def failing(model: Path, transport: MemoryTransport | None = None, **options: Any) -> AsyncIterator[Running]:
    async with (
        asyncio.timeout(DEADLINE),
        pipeline(model, 3, transport=transport, drafter="ngram", **{"timeouts": QUICK, **options}) as running,
    ):
        yield running


async def streamed(client: Client, act: Act, tokens: int = TOKENS, **options: Any) -> Generation:
    """A whole stream; `act` is told after each chunk how many tokens have come."""
    stream = client.stream(
        prompt_token_ids=PROMPT, max_new_tokens=tokens, ignore_eos=True, **{"policy": "flowspec", **options}
    )
    async for _ in stream:
        await act(len(stream.generation.token_ids))
    return stream.generation


async def quietly(_: int) -> None:
    """Do nothing."""


def once_at(tokens: Sequence[int], act: Callable[[], Awaitable[None]]) -> Act:
    """Act when so many tokens have come, for each number once."""
    left = list(tokens)

    async def check(count: int) -> None:
        if left and count >= left[0]:
            left.pop(0)
            await act()

    return check


class Replaced:
    """Puts a new stage in the place of another; closes what it has opened."""

    def __init__(self, running: Running, transport: MemoryTransport, stack: AsyncExitStack) -> None:
        self.running = running
        self.transport = transport
        self.stack = stack

    async def __call__(self, index: int) -> None:
        old = self.running.stages[index]
        await old.close()
        new = StageNode(self.running.topology, old.name, transport=self.transport)
        self.running.stages[index] = await self.stack.enter_async_context(new)


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_stage_that_is_replaced_in_the_middle_of_streams_changes_none_of_them(model: Path, index: int) -> None:
    transport = MemoryTransport()
    async with failing(model, transport) as running, AsyncExitStack() as stack, coordinator_first(running):
        undisturbed = await streamed(running.client, quietly, **SAMPLED)
        replaced = Replaced(running, transport, stack)
        greedy, sampled, plain = await asyncio.gather(
            streamed(running.client, once_at([7, 25], lambda: replaced(index))),
            streamed(running.client, quietly, **SAMPLED),
            streamed(running.client, quietly, policy="autoregressive"),
        )
        assert list(greedy.token_ids) == list(plain.token_ids) == alone(model, PROMPT, TOKENS)
        assert (sampled.token_ids, sampled.text) == (undisturbed.token_ids, undisturbed.text)
        assert undisturbed.stats is not None
        assert greedy.stats is not None
        assert (undisturbed.stats.restarts, greedy.stats.resumed) == (0, 0)
        assert greedy.stats.restarts >= 2
        await nothing_left(running)


async def nothing_left(running: Running) -> None:
    """Wait until no stage holds a session."""
    while any(stage.sessions for stage in running.stages) or not running.coordinator.scheduler.idle:
        await running.client.status()


async def test_a_second_stage_that_fails_during_the_replay_changes_nothing(model: Path) -> None:
    transport = MemoryTransport()
    async with failing(model, transport) as running, AsyncExitStack() as stack, coordinator_first(running):
        replaced = Replaced(running, transport, stack)
        replaying = asyncio.Event()

        def watch(channel: str, sender: str, message: Message) -> None:
            if isinstance(message, Segment) and message.epoch == 1:
                replaying.set()

        transport.faults = Faults(observe=watch)

        async def fail_twice() -> None:
            await replaced(1)
            await replaying.wait()
            await replaced(2)

        failures: list[asyncio.Task[None]] = []

        async def begin() -> None:
            failures.append(asyncio.ensure_future(fail_twice()))

        result = await streamed(running.client, once_at([10], begin))
        await asyncio.gather(*failures)
        assert list(result.token_ids) == alone(model, PROMPT, TOKENS)


@pytest.mark.parametrize("kind", [Segment, Open])
async def test_what_is_lost_in_the_pipe_is_sent_again_in_a_new_epoch(model: Path, kind: type[Message]) -> None:
    for seed in range(2):
        transport = MemoryTransport(seed=seed)
        async with failing(model, transport) as running:
            undisturbed = await streamed(running.client, quietly, **SAMPLED)
            dice, lost = Random(seed), 0

            def lose(hop: int, message: Message, dice: Random = dice) -> bool:
                nonlocal lost
                loses = isinstance(message, kind) and lost < 4 and dice.random() < (0.1 if kind is Segment else 0.7)
                lost += loses
                return loses

            transport.faults = Faults(drop_forward=lose)
            greedy, sampled = await asyncio.gather(
                streamed(running.client, quietly), streamed(running.client, quietly, **SAMPLED)
            )
            assert lost == 4 if kind is Segment else lost > 0
            assert list(greedy.token_ids) == alone(model, PROMPT, TOKENS)
            assert sampled.token_ids == undisturbed.token_ids


async def test_rows_are_freed_when_the_end_of_a_session_is_lost(model: Path) -> None:
    transport = MemoryTransport()
    async with failing(model, transport) as running:
        transport.faults = Faults(drop_forward=lambda hop, message: hop == 1 and isinstance(message, Close))
        await complete(running, PROMPT, "flowspec")
        await nothing_left(running)


@pytest.mark.parametrize("error", [PipelineError("the accelerator is on fire"), IndexError("index on fire")])
async def test_what_always_fails_at_a_stage_ends_with_the_stage_and_its_reason(model: Path, error: Exception) -> None:
    async with failing(model) as running:
        stage = running.stages[1]
        forward, before = stage.block.forward, stage.incarnation

        def broken(*_: object, **__: object) -> None:
            raise error

        stage.block.forward = broken  # type: ignore[method-assign]
        with pytest.raises(PipelineError, match=r"stage-2.*on fire"):
            await complete(running, PROMPT, "flowspec")
        stage.block.forward = forward  # type: ignore[method-assign]
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        assert stage.incarnation == before


async def test_a_stage_that_nobody_replaces_ends_its_requests_in_time_with_name_and_tokens(model: Path) -> None:
    timeouts = {**QUICK, "recovery": 0.3}
    async with failing(model, timeouts=timeouts) as running:
        results = await asyncio.gather(
            streamed(running.client, once_at([10], running.stages[1].close), tokens=400),
            streamed(running.client, quietly, tokens=400),
            return_exceptions=True,
        )
        for error in results:
            assert isinstance(error, PipelineError)
            assert "stage-2" in str(error)
            written = list(error.partial.token_ids)
            assert written == alone(model, PROMPT, len(written))
        with pytest.raises(PipelineError, match="stage-2"):
            await complete(running, PROMPT, "flowspec")


async def test_a_request_that_comes_while_a_stage_is_lost_waits_for_it(model: Path) -> None:
    transport = MemoryTransport()
    async with failing(model, transport) as running:
        await running.stages[1].close()
        while (await running.client.status()).ready:
            pass
        asked = asyncio.ensure_future(complete(running, PROMPT, "flowspec"))
        while not (await running.client.status()).sessions:
            pass
        async with StageNode(running.topology, "stage-2", transport=transport), coordinator_first(running):
            assert list((await asked).token_ids) == alone(model, PROMPT, 24)


async def test_a_stage_that_is_taken_for_lost_begins_afresh_and_takes_part_again(model: Path) -> None:
    async with failing(model) as running:
        stage = running.stages[1]
        before = stage.incarnation

        async def give_up() -> None:
            running.coordinator.stage_died(stage.name, "it was said to be dead")

        result = await streamed(running.client, once_at([10, 30], give_up))
        assert list(result.token_ids) == alone(model, PROMPT, TOKENS)
        assert stage.incarnation != before


async def kill(coordinator: Coordinator) -> None:
    """End it without a word to anybody, as `kill -9` would."""
    coordinator._desk = None
    await coordinator.close()


async def test_streams_go_on_at_a_coordinator_that_was_started_again(model: Path) -> None:
    transport = MemoryTransport()
    async with failing(model, transport) as running, AsyncExitStack() as stack, coordinator_first(running):
        whole = await streamed(running.client, quietly, **SAMPLED)
        stop = whole.text[-9:-5]
        stopped = await streamed(running.client, quietly, stop=[stop], **SAMPLED)

        async def restart() -> None:
            await kill(running.coordinator)
            again = Coordinator(running.topology, transport=transport)
            running.coordinator = await stack.enter_async_context(again)

        results = await asyncio.gather(
            streamed(running.client, once_at([10, 30], restart), **SAMPLED),
            streamed(running.client, quietly, stop=[stop], **SAMPLED),
            streamed(running.client, quietly),
        )
        for result, expected in zip(results, (whole, stopped), strict=False):
            assert (result.token_ids, result.text) == (expected.token_ids, expected.text)
            assert result.finish_reason == expected.finish_reason
        assert list(results[2].token_ids) == alone(model, PROMPT, TOKENS)
        stats = results[0].stats
        assert stats is not None
        assert stats.new_tokens == TOKENS
        assert stats.restarts >= 2
        assert stats.resumed >= 30
        assert stats.accepted_per_verdict * stats.verdicts == pytest.approx(TOKENS - stats.resumed)
        assert stats.accepted + stats.pruned <= stats.drafted
        await nothing_left(running)


@pytest.mark.parametrize("count", [1, TOKENS - 1, TOKENS])
async def test_a_request_that_resumes_ends_as_it_would_have(model: Path, count: int) -> None:
    """With text and reason of the whole, wherever it was broken off, its last token included."""
    async with failing(model) as running:
        whole = await streamed(running.client, quietly, **SAMPLED)
        stream = running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=TOKENS, ignore_eos=True, **SAMPLED)
        stream._request = replace(stream._request, resume=whole.token_ids[:count])
        stream._token_ids = list(whole.token_ids[:count])
        async for _ in stream:
            pass
        assert stream.generation.token_ids == whole.token_ids
        assert stream.generation.finish_reason == whole.finish_reason
        assert whole.text.endswith(stream.generation.text)
        stats = stream.generation.stats
        assert stats is not None
        assert stats.accepted_per_verdict * stats.verdicts == pytest.approx(TOKENS - count)
        assert (stats.new_tokens, stats.resumed, stats.restarts) == (TOKENS, count, 0)
