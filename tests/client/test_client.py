"""The client against a coordinator that says what the test wants, over the in-memory transport and over ZeroMQ."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from flowspec.client import Client
from flowspec.errors import (
    CoordinatorStopped,
    FlowspecError,
    InvariantViolation,
    LimitExceeded,
    ModelError,
    Overloaded,
    PeerTimeout,
    PipelineError,
    RequestError,
    TransportError,
)
from flowspec.topology import Topology
from flowspec.transport.memory import Depths, MemoryTransport
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.messages import Failed, Status
from tests.client.coordinators import (
    PROMPT,
    STATS,
    Answer,
    Conversation,
    FakeCoordinator,
    coordinating,
    one_chunk_and_silence,
    two_chunks,
)

DEADLINE = 10.0

Connect = Callable[..., AbstractAsyncContextManager[tuple[Client, FakeCoordinator]]]


@pytest.fixture(params=["memory", "zeromq"])
def connect(request: pytest.FixtureRequest) -> Connect:
    transport = MemoryTransport() if request.param == "memory" else ZeroMQTransport()

    @asynccontextmanager
    async def connected(answer: Answer, **options: float) -> AsyncIterator[tuple[Client, FakeCoordinator]]:
        topology = Topology.local(stages=1)
        async with (
            asyncio.timeout(DEADLINE),
            coordinating(transport, topology, answer) as coordinator,
            Client(topology.client_address, transport=transport, **options) as client,
        ):
            yield client, coordinator

    return connected


async def test_a_stream_gives_chunks_and_then_the_whole_generation(connect: Connect) -> None:
    async with connect(two_chunks) as (client, _):
        stream = client.stream("hello", seed=3)
        texts = [chunk.text async for chunk in stream]
        assert texts == ["ab", "cd"]
        generation = stream.generation
        assert (generation.text, generation.token_ids) == ("abcd", (1, 2, 3, 4))
        assert (generation.prompt_token_ids, generation.finish_reason) == (PROMPT, "length")
        assert (generation.seed, generation.stats) == (3, STATS)


async def test_options_reach_the_coordinator_as_given(connect: Connect) -> None:
    async with connect(two_chunks) as (client, coordinator):
        await client.generate(
            prompt_token_ids=[9, 8], temperature=0.8, top_k=5, stop=["x"], ignore_eos=True, policy="autoregressive"
        )
        asked = coordinator.asked.get_nowait().asked
        assert (asked.prompt, asked.prompt_token_ids) == (None, (9, 8))
        assert (asked.temperature, asked.top_k, asked.top_p, asked.max_new_tokens) == (0.8, 5, None, None)
        assert (asked.stop, asked.ignore_eos, asked.chat, asked.policy) == (("x",), True, False, "autoregressive")


async def test_requests_at_the_same_time_get_their_own_chunks(connect: Connect) -> None:
    both_started = asyncio.Barrier(2)

    async def echo(conversation: Conversation) -> None:
        await conversation.start()
        await both_started.wait()
        await conversation.chunk(0, str(conversation.asked.prompt), 1)
        await conversation.finish()

    async with connect(echo) as (client, _):
        first, second = await asyncio.gather(client.generate("one"), client.generate("two"))
        assert (first.text, second.text) == ("one", "two")


async def test_leaving_the_iteration_cancels_the_request(connect: Connect) -> None:
    async with connect(one_chunk_and_silence) as (client, coordinator):
        chunks = aiter(client.stream("hello"))
        assert (await anext(chunks)).text == "ab"
        await chunks.aclose()
        await coordinator.asked.get_nowait().cancelled.wait()


async def test_cancelling_the_caller_cancels_the_request(connect: Connect) -> None:
    async with connect(one_chunk_and_silence) as (client, coordinator):
        task = asyncio.ensure_future(client.generate("hello"))
        conversation = await coordinator.asked.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await conversation.cancelled.wait()


async def test_closing_the_client_cancels_what_runs_and_tells_it(connect: Connect) -> None:
    async with connect(one_chunk_and_silence) as (client, coordinator):
        chunks = aiter(client.stream("hello"))
        await anext(chunks)
        await client.close()
        with pytest.raises(TransportError, match="was closed") as caught:
            await anext(chunks)
        assert caught.value.partial.token_ids == (1, 2)
        await coordinator.asked.get_nowait().cancelled.wait()


async def test_a_task_of_the_client_that_fails_ends_what_runs(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(client: Client, status: Status) -> None:
        raise KeyError("nobody expected this")

    monkeypatch.setattr(Client, "_notice_forgotten", fail)
    async with connect(one_chunk_and_silence, silence_timeout=0.06) as (client, _):
        with pytest.raises(PipelineError, match=r"read: KeyError: .*nobody expected this") as caught:
            await client.generate("hello")
        assert caught.value.partial.token_ids == (1, 2)


async def test_a_channel_that_fails_is_an_error_of_the_transport(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise OSError("the wire is cut")

    async with connect(one_chunk_and_silence) as (client, _):
        monkeypatch.setattr(client._channel, "receive", fail)
        with pytest.raises(TransportError, match="OSError: the wire is cut"):
            await client.generate("hello")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LimitExceeded", LimitExceeded),
        ("RequestError", RequestError),
        ("ModelError", ModelError),
        ("InvariantViolation", InvariantViolation),
        ("SomethingOfTomorrow", PipelineError),
        ("Any", PipelineError),
    ],
)
async def test_a_failure_arrives_as_the_error_that_it_names(name: str, kind: type[FlowspecError]) -> None:
    async def refuse(conversation: Conversation) -> None:
        await conversation.fail(name, "the reason")

    transport, topology = MemoryTransport(), Topology.local(stages=1)
    async with (
        coordinating(transport, topology, refuse),
        Client(topology.client_address, transport=transport) as client,
    ):
        with pytest.raises(kind, match="the reason") as caught:
            await client.generate("hello")
        assert type(caught.value) is kind
        assert caught.value.exit_code == kind.exit_code


async def test_a_failure_half_way_carries_what_had_come(connect: Connect) -> None:
    async def break_off(conversation: Conversation) -> None:
        await conversation.start()
        await conversation.chunk(0, "ab", 1, 2)
        await conversation.fail("PipelineError", "node stage-2: lost")

    async with connect(break_off) as (client, _):
        with pytest.raises(PipelineError, match="stage-2") as caught:
            await client.generate("hello")
        assert (caught.value.partial.text, caught.value.partial.token_ids) == ("ab", (1, 2))
        assert caught.value.partial.stats is None


async def test_a_gap_in_the_tokens_is_an_error_and_cancels(connect: Connect) -> None:
    async def skip(conversation: Conversation) -> None:
        await conversation.start()
        await conversation.chunk(2, "cd", 3, 4)
        await conversation.cancelled.wait()

    async with connect(skip) as (client, coordinator):
        with pytest.raises(PipelineError, match="begins at token 2"):
            await client.generate("hello")
        await coordinator.asked.get_nowait().cancelled.wait()


@pytest.mark.parametrize("transport", [MemoryTransport(), ZeroMQTransport()], ids=["memory", "zeromq"])
async def test_nobody_there_is_told_with_address_and_seconds(transport: MemoryTransport | ZeroMQTransport) -> None:
    address = Topology.local(stages=1).client_address
    with pytest.raises(PeerTimeout) as caught:
        await Client(address, connect_timeout=0.05, transport=transport).__aenter__()
    assert address in str(caught.value)
    assert "0.05 s" in str(caught.value)


async def test_a_coordinator_that_comes_late_is_waited_for_until_the_connect_timeout() -> None:
    transport, topology = MemoryTransport(), Topology.local(stages=1)
    client = Client(topology.client_address, transport=transport, silence_timeout=0.01)
    connecting = asyncio.ensure_future(client.__aenter__())
    done, _ = await asyncio.wait({connecting}, timeout=0.1)
    assert not done
    async with asyncio.timeout(DEADLINE), coordinating(transport, topology, two_chunks):
        await connecting
        await client.close()


async def test_a_coordinator_that_falls_silent_is_lost_and_the_tokens_are_kept(connect: Connect) -> None:
    async with connect(one_chunk_and_silence, silence_timeout=0.06) as (client, coordinator):
        chunks = aiter(client.stream("hello"))
        await anext(chunks)
        coordinator.alive = False
        with pytest.raises(PeerTimeout, match="sign of life") as caught:
            await anext(chunks)
        assert client.address in str(caught.value)
        assert caught.value.partial.token_ids == (1, 2)
        with pytest.raises(PeerTimeout):
            await client.generate("again")


async def test_a_request_that_was_forgotten_is_asked_again_for_what_is_missing(connect: Connect) -> None:
    async def forget_the_first(conversation: Conversation) -> None:
        await conversation.start()
        if not conversation.asked.resume:
            await conversation.chunk(0, "ab", 1, 2)
            conversation.over = True
        else:
            await conversation.chunk(2, "cd", 3, 4)
            await conversation.finish()

    async with connect(forget_the_first, silence_timeout=3.0) as (client, coordinator):
        generation = await client.generate("hello", temperature=0.5, stop=["x"])
        assert (generation.text, generation.token_ids, generation.finish_reason) == ("abcd", (1, 2, 3, 4), "length")
        first, second = (coordinator.asked.get_nowait().asked for _ in range(2))
        assert (first.prompt, first.resume, first.seed) == ("hello", (), None)
        assert (second.prompt, second.prompt_token_ids, second.resume, second.seed) == (None, PROMPT, (1, 2), 11)
        assert (second.temperature, second.stop) == (0.5, ("x",))
        assert generation.stats is not None
        assert (generation.stats.restarts, generation.stats.verdicts) == (1, STATS.verdicts)
        assert generation.stats.seconds > STATS.seconds
        assert generation.stats.tokens_per_second == pytest.approx(3 / generation.stats.seconds)
        assert first.request != second.request


async def test_text_that_had_come_behind_the_last_token_does_not_come_twice(connect: Connect) -> None:
    async def forget_before_the_end(conversation: Conversation) -> None:
        await conversation.start()
        if not conversation.asked.resume:
            await conversation.chunk(0, "a", 1, 2)
        await conversation.chunk(2, "b")
        if conversation.asked.resume:
            await conversation.finish()
        conversation.over = True

    async with connect(forget_before_the_end, silence_timeout=3.0) as (client, _):
        assert (await client.generate("hello")).text == "ab"


async def test_a_coordinator_that_forgot_a_request_and_does_not_become_ready_is_given_up(connect: Connect) -> None:
    async def forget(conversation: Conversation) -> None:
        await conversation.start()
        await conversation.chunk(0, "ab", 1, 2)
        conversation.over = True

    async with connect(forget, silence_timeout=0.3) as (client, coordinator):
        coordinator.ready = False
        with pytest.raises(PipelineError, match="not ready within") as caught:
            await client.generate("hello")
        assert caught.value.partial.token_ids == (1, 2)


async def test_what_a_coordinator_that_stops_breaks_off_goes_on_when_there_is_one_that_does_not(
    connect: Connect,
) -> None:
    async def break_off_the_first(conversation: Conversation) -> None:
        await conversation.start()
        if not conversation.asked.resume:
            await conversation.chunk(0, "ab", 1, 2)
            coordinator.draining = True
            await conversation.fail("CoordinatorStopped", "the coordinator was stopped")
            while not coordinator.queried.empty():
                coordinator.queried.get_nowait()
            for _ in range(2):
                await coordinator.queried.get()
            coordinator.draining = False
        else:
            assert not coordinator.draining
            await conversation.chunk(2, "cd", 3, 4)
            await conversation.finish()

    async with connect(break_off_the_first, silence_timeout=3.0) as (client, coordinator):
        assert (await client.generate("hello")).token_ids == (1, 2, 3, 4)


async def test_a_coordinator_that_goes_on_stopping_is_given_up_with_the_tokens_so_far(connect: Connect) -> None:
    async def break_off(conversation: Conversation) -> None:
        await conversation.start()
        await conversation.chunk(0, "ab", 1, 2)
        await conversation.fail("CoordinatorStopped", "the coordinator was stopped")

    async with connect(break_off, silence_timeout=0.3) as (client, coordinator):
        coordinator.draining = True
        with pytest.raises(CoordinatorStopped, match=r"no other has come within 0\.3 s") as caught:
            await client.generate("hello")
        assert caught.value.partial.token_ids == (1, 2)


async def test_a_refusal_for_want_of_room_says_when_to_ask_again(connect: Connect) -> None:
    async def refuse(conversation: Conversation) -> None:
        await conversation.say(Failed(conversation.asked.request, "Overloaded", "full", 1.5))

    async with connect(refuse) as (client, _):
        with pytest.raises(Overloaded) as caught:
            await client.generate("hello")
        assert caught.value.retry_after == 1.5


async def test_a_slow_coordinator_that_shows_life_is_waited_for(connect: Connect) -> None:
    async def slow(conversation: Conversation) -> None:
        await conversation.start()
        for _ in range(8):
            await coordinator.queried.get()
        await conversation.finish()

    async with connect(slow, silence_timeout=0.06) as (client, coordinator):
        assert (await client.generate("hello")).finish_reason == "length"


async def test_status_tells_what_the_coordinator_knows(connect: Connect) -> None:
    async with connect(two_chunks) as (client, _):
        status = await client.status()
        assert (status.ready, status.model, status.drafter) == (True, "demo", "ngram")


def test_a_request_without_one_prompt_is_refused_before_it_is_sent() -> None:
    client = Client("tcp://127.0.0.1:1")
    with pytest.raises(RequestError, match="either"):
        client.stream()
    with pytest.raises(RequestError, match="either"):
        client.stream("a", prompt_token_ids=[1])
    with pytest.raises(RequestError, match="max_tokens"):
        client.stream("a", max_tokens=3)  # type: ignore[call-arg]


async def test_a_client_outside_of_its_block_says_how_it_is_used() -> None:
    client = Client("tcp://127.0.0.1:1")
    with pytest.raises(TransportError, match=r"not connected\n  use it inside `async with flowspec\.Client"):
        await client.generate("a")
    with pytest.raises(TransportError, match="async with"):
        await client.status()


async def test_a_stream_is_iterated_once(connect: Connect) -> None:
    async with connect(two_chunks) as (client, _):
        stream = client.stream("hello")
        assert len([chunk async for chunk in stream]) == 2
        with pytest.raises(RequestError, match="once"):
            aiter(stream)


def test_importing_the_client_loads_neither_torch_nor_a_socket_library() -> None:
    heavy = "{'torch', 'transformers', 'zmq', 'tokenizers'}"
    program = f"import sys, flowspec; flowspec.Client('tcp://x:1').stream('a'); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


async def test_a_stream_that_nobody_reads_is_told_once_that_it_was_forgotten(connect: Connect) -> None:
    async with connect(one_chunk_and_silence) as (client, coordinator):
        chunks = aiter(client.stream("x"))
        await anext(chunks)
        (await coordinator.asked.get()).over = True  # another coordinator, which knows nothing of it
        coordinator.queried = asyncio.Queue()
        for _ in range(4):
            await coordinator.queried.get()
        (inbox,) = client._inboxes.values()
        assert sum(isinstance(message, Status) for message in inbox._queue) == 1  # type: ignore[attr-defined]
        await chunks.aclose()


async def test_an_answer_that_comes_after_all_was_given_up_changes_nothing(connect: Connect) -> None:
    async with connect(one_chunk_and_silence, silence_timeout=0.3) as (client, coordinator):
        chunks = aiter(client.stream("x"))
        await anext(chunks)
        coordinator.alive = False
        await asyncio.wait(client._tasks[1:])  # the watch, which ends with that
        error = client._broken
        assert isinstance(error, PeerTimeout)
        (await coordinator.asked.get()).over = True
        query, running = next(iter(client._pings.items()))
        assert running
        client._notice_forgotten(Status(query, True, "demo", "flowspec", "ngram", 0, (), 2048))
        assert client._broken is error
        with pytest.raises(PeerTimeout):
            await client.status()
        await chunks.aclose()


async def test_closing_takes_no_longer_than_it_may_and_may_be_asked_for_twice_at_once() -> None:
    transport = MemoryTransport(depths=Depths(client=2))
    topology = Topology.local(stages=1)
    async with asyncio.timeout(DEADLINE), coordinating(transport, topology, two_chunks) as coordinator:
        client = Client(topology.client_address, transport=transport, connect_timeout=5 * DEADLINE, close_timeout=0.05)
        await client.__aenter__()
        coordinator.stop()
        streams = [asyncio.ensure_future(anext(aiter(client.stream("x")))) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.gather(client.close(), client.close())
        await asyncio.gather(*streams, return_exceptions=True)
