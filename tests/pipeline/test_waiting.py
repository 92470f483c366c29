"""More requests than there are sessions: they wait in line, up to a bound, and nobody waits for somebody slow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowspec.client import Client
from flowspec.errors import Overloaded
from flowspec.transport.mailbox import Depths
from flowspec.transport.memory import MemoryTransport
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import alone, complete, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
NARROW = {"sessions": 1, "waiting": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=2)


async def test_requests_wait_their_turn_and_come_in_order(model: Path) -> None:
    async with asyncio.timeout(60), pipeline(model, 2, drafter="ngram", limits=NARROW) as running:
        ended: list[int] = []

        async def ask(number: int) -> None:
            assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
            ended.append(number)

        await asyncio.gather(*(ask(number) for number in range(3)))
        assert ended == [0, 1, 2]


async def test_one_too_many_is_refused_with_the_limits_and_the_seconds_to_wait(model: Path) -> None:
    async with asyncio.timeout(60), pipeline(model, 2, drafter="ngram", limits=NARROW) as running:
        first = aiter(running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=400, ignore_eos=True))
        await anext(first)
        waiting = [asyncio.ensure_future(complete(running, PROMPT, "flowspec")) for _ in range(2)]
        while (await running.client.status()).waiting < 2:
            pass
        with pytest.raises(Overloaded, match=r"limits\.sessions.*limits\.waiting") as caught:
            await complete(running, PROMPT, "flowspec")
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        await first.aclose()
        for request in waiting:
            assert list((await request).token_ids) == alone(model, PROMPT, 24)


async def test_a_request_that_waits_can_be_cancelled_and_those_behind_it_move_up(model: Path) -> None:
    async with asyncio.timeout(60), pipeline(model, 2, drafter="ngram", limits=NARROW) as running:
        first = aiter(running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=400, ignore_eos=True))
        await anext(first)
        second, third = (asyncio.ensure_future(complete(running, PROMPT, "flowspec")) for _ in range(2))
        while (await running.client.status()).waiting < 2:
            pass
        second.cancel()
        while (await running.client.status()).waiting > 1:
            pass
        await first.aclose()
        assert list((await third).token_ids) == alone(model, PROMPT, 24)


async def test_a_client_that_does_not_read_loses_its_request_and_slows_nobody(model: Path) -> None:
    transport = MemoryTransport(depths=Depths(client=4))
    async with (
        asyncio.timeout(60),
        pipeline(model, 2, drafter="ngram", transport=transport) as running,
        Client(running.topology.client_address, transport=transport) as slow,
    ):
        stream = aiter(slow.stream(prompt_token_ids=PROMPT, max_new_tokens=400, ignore_eos=True))
        await anext(stream)
        for task in slow._tasks:
            task.cancel()
        while running.coordinator.scheduler.sessions:
            await complete(running, PROMPT, "autoregressive", max_new_tokens=2)
        await stream.aclose()
