"""Prompts are tokenized beside everything else: whatever becomes of one meanwhile, nobody else waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowspec.errors import CoordinatorStopped, LimitExceeded, RequestError
from flowspec.roles.admission import TOKEN_BYTES
from flowspec.transport.base import ClientChannel
from flowspec.transport.memory import MemoryTransport
from flowspec.wire.messages import Cancel, Failed, Finished, Generate, Started, Status, StatusQuery
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, alone, complete, pipeline

CONTEXT = 512
SLOW = "a prompt that takes long"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=2, context=CONTEXT)


class Reading:
    """A pipeline whose tokenizer does not end with `SLOW` before it may."""

    def __init__(self, running: Running, transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running = running
        self.client = running.client
        self.may_end = threading.Event()
        self.read: list[str | None] = []
        self._transport = transport
        admission = running.coordinator.admission
        tokens_of = admission.read

        def read(asked: Generate) -> tuple[int, ...]:
            self.read.append(asked.prompt)
            if asked.prompt == SLOW:
                self.may_end.wait()
            return tokens_of(asked)

        monkeypatch.setattr(admission, "read", read)

    async def until_begun(self) -> None:
        while SLOW not in self.read:
            await self.client.status()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[ClientChannel]:
        """Of a client that says what the test says, and nothing else."""
        channel = await self._transport.connect_client(self.running.topology.client_address)
        try:
            yield channel
        finally:
            await channel.close()


@pytest.fixture
def released() -> Iterator[list[Reading]]:
    """Lets every thread end, also when a test fails."""
    made: list[Reading] = []
    yield made
    for reading in made:
        reading.may_end.set()


@asynccontextmanager
async def reading(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading], **overrides: Any
) -> AsyncIterator[Reading]:
    transport = MemoryTransport()
    async with (
        asyncio.timeout(60),
        pipeline(model, 2, transport=transport, **{"drafter": "ngram", **overrides}) as running,
    ):
        released.append(Reading(running, transport, monkeypatch))
        try:
            yield released[-1]
        finally:
            released[-1].may_end.set()


def asked(name: str, prompt: str = SLOW) -> Generate:
    return Generate(name, prompt, None, False, 4, None, None, None, None, None, None, (), True, None)


async def test_others_stream_while_a_prompt_is_tokenized(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held:
        slow = asyncio.ensure_future(held.client.generate(SLOW, max_new_tokens=8, ignore_eos=True))
        await held.until_begun()
        prompt = [5, 9, 33]
        others = await complete(held.running, prompt, "flowspec", max_new_tokens=40)
        assert list(others.token_ids) == alone(model, prompt, 40)
        status = await held.client.status()
        assert (status.waiting, status.sessions, len(status.requests)) == (1, 0, 1)
        assert not slow.done()
        held.may_end.set()
        result = await slow
        assert list(result.token_ids) == alone(model, result.prompt_token_ids, 8)
        assert (await held.client.status()).waiting == 0


async def test_a_client_with_many_long_prompts_is_behind_others_with_the_second(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held, held.channel() as greedy:
        for name in ("first", "second", "third"):
            await greedy.send(asked(name, SLOW if name == "first" else name))
        await held.until_begun()
        while (await held.client.status()).waiting < 3:
            pass
        other = asyncio.ensure_future(held.client.generate("another", max_new_tokens=4, ignore_eos=True))
        while (await held.client.status()).waiting < 4:
            pass
        held.may_end.set()
        await other
        while (await held.client.status()).waiting:
            pass
        assert held.read.index("another") < held.read.index("third")


async def test_what_is_cancelled_while_its_prompt_is_tokenized_never_starts(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held, held.channel() as channel:
        await channel.send(asked("cancelled at once"))
        await channel.send(Cancel("cancelled at once"))
        ended = (await channel.receive()).message
        assert isinstance(ended, Finished)
        assert (ended.request, ended.finish_reason, ended.stats.new_tokens) == ("cancelled at once", "cancelled", 0)
        await channel.send(asked("cancelled later"))
        await channel.send(StatusQuery("status"))
        status = (await channel.receive()).message
        assert isinstance(status, Status)
        assert status.requests == ("cancelled later",)
        await channel.send(Cancel("cancelled later"))
        assert isinstance((await channel.receive()).message, Finished)
        held.may_end.set()
        # The thread takes one after the other, so it has done with the others when this one starts.
        await channel.send(asked("the next", "def"))
        started = (await channel.receive()).message
        assert isinstance(started, Started)
        assert started.request == "the next"


async def test_a_client_that_vanishes_while_its_prompt_is_tokenized_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held:
        async with held.channel() as channel:
            await channel.send(asked("gone"))
            await held.until_begun()
        held.may_end.set()
        while (status := await held.client.status()).waiting or status.sessions:
            pass
        assert not held.running.coordinator.scheduler.sessions


async def test_a_coordinator_that_drains_serves_whose_prompt_is_being_tokenized(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held:
        slow = asyncio.ensure_future(held.client.generate(SLOW, max_new_tokens=4, ignore_eos=True))
        await held.until_begun()
        held.running.coordinator.drain()
        async with held.channel() as late:
            await late.send(asked("late"))
            refused = (await late.receive()).message
            assert isinstance(refused, Failed)
            assert refused.error == CoordinatorStopped.__name__
        held.may_end.set()
        assert len((await slow).token_ids) == 4
        await held.running.coordinator.wait()


async def test_a_coordinator_that_is_stopped_says_so_before_the_tokenizer_is_done(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held, held.channel() as channel:
        await channel.send(asked("slow"))
        await channel.send(asked("behind it", "def"))
        await held.until_begun()
        closing = asyncio.ensure_future(held.running.coordinator.close())
        ended = [(await channel.receive()).message for _ in range(2)]
        assert {(each.request, each.error) for each in ended if isinstance(each, Failed)} == {
            ("slow", CoordinatorStopped.__name__),
            ("behind it", CoordinatorStopped.__name__),
        }
        held.may_end.set()
        await closing
        assert "def" not in held.read


@pytest.mark.parametrize("chat", [False, True])
async def test_a_text_that_cannot_fit_is_refused_without_being_tokenized(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading], chat: bool
) -> None:
    async with reading(model, monkeypatch, released) as held:
        most = TOKEN_BYTES * CONTEXT
        with pytest.raises(LimitExceeded, match=rf"{CONTEXT} tokens, in bytes, is {most}, .* {most + 2}\n  shorten"):
            await held.client.generate("é" * (most // 2 + 1), chat=chat)
        assert held.read == []
        with pytest.raises(LimitExceeded, match=f"in tokens\\) is {CONTEXT}"):
            await held.client.generate("é" * (most // 2), chat=chat)
        assert len(held.read) == 1


async def test_a_prompt_that_the_tokenizer_refuses_costs_its_client_that_request_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held:
        tokenizer = held.running.coordinator.admission.tokenizer
        encode = tokenizer.encode

        def refusing(text: str, **options: Any) -> list[int]:
            if text == "odd":
                raise ValueError("too many values to unpack")
            tokens: list[int] = encode(text, **options)
            return tokens

        monkeypatch.setattr(tokenizer, "encode", refusing)
        with pytest.raises(RequestError, match="tokenizer refuses this prompt: too many values"):
            await held.client.generate("odd")
        assert (await held.client.generate("even", max_new_tokens=2, ignore_eos=True)).token_ids


async def test_tokens_that_a_client_has_already_go_before_what_follows_its_text(
    model: Path, monkeypatch: pytest.MonkeyPatch, released: list[Reading]
) -> None:
    async with reading(model, monkeypatch, released) as held:
        held.may_end.set()
        whole = await held.client.generate(SLOW, max_new_tokens=12, ignore_eos=True, seed=1)
        async with held.channel() as channel:
            await channel.send(
                Generate(
                    *("resumed", SLOW, None, False, 12, None, None, None, None, None, 1, (), True, None),
                    resume=whole.token_ids[:5],
                )
            )
            assert isinstance((await channel.receive()).message, Started)
            come: list[int] = []
            while not isinstance(message := (await channel.receive()).message, Finished):
                come += getattr(message, "token_ids", ())
            assert (*whole.token_ids[:5], *come) == whole.token_ids
            assert message.stats.new_tokens == 12
