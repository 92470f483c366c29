"""What the roles do when something does not go as planned: restarts, losses, refusals, cancels, strangers' messages."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from flowspec.client import Client
from flowspec.errors import FlowspecError, LimitExceeded, ModelError, PipelineError, RequestError
from flowspec.roles.coordinator import Coordinator
from flowspec.roles.stage import StageNode
from flowspec.schedule.autoregressive import Autoregressive
from flowspec.schedule.policy import Room
from flowspec.topology import Topology
from flowspec.transport.memory import Faults, MemoryTransport
from flowspec.wire.frames import Envelope, register
from flowspec.wire.messages import DraftTokens, Message, Segment
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import alone, complete, coordinator_first, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
QUICK = {"heartbeat_interval": 0.05, "heartbeat_deadline": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", layers=4)


async def test_a_restarted_stage_makes_the_pipe_ready_again(model: Path) -> None:
    transport = MemoryTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram", timeouts=QUICK) as running:
        expected = alone(model, PROMPT, 24)
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == expected
        await running.stages[1].close()
        async with StageNode(running.topology, "stage-2", transport=transport) as again, coordinator_first(running):
            await again.ready()
            await running.coordinator.ready()
            assert list((await complete(running, PROMPT, "flowspec")).token_ids) == expected


async def test_stages_serve_the_next_coordinator(model: Path) -> None:
    transport = MemoryTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram", timeouts=QUICK) as running:
        await running.coordinator.close()
        async with Coordinator(running.topology, transport=transport) as again:
            await again.ready()
            async with Client(running.topology.client_address, transport=transport) as client:
                result = await client.generate(prompt_token_ids=PROMPT, max_new_tokens=24, ignore_eos=True)
                assert list(result.token_ids) == alone(model, PROMPT, 24)


async def test_a_stage_lost_in_a_stream_ends_it_with_its_name_and_the_tokens_so_far(model: Path) -> None:
    async with pipeline(model, 3, drafter="ngram", timeouts={**QUICK, "recovery": 0.5}) as running:
        stream = running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=400, ignore_eos=True)

        async def close_the_stage_when_tokens_come() -> None:
            async for _ in stream:
                await running.stages[1].close()

        with pytest.raises(PipelineError, match="stage-2") as caught:
            await close_the_stage_when_tokens_come()
        assert caught.value.partial is not None
        written = list(caught.value.partial.token_ids)
        assert written == alone(model, PROMPT, len(written))
        with pytest.raises(PipelineError, match="stage-2"):
            await complete(running, PROMPT, "flowspec")


async def test_a_pipe_that_was_idle_for_long_is_no_pipe_that_does_not_answer(model: Path) -> None:
    timeouts = {**QUICK, "progress": 0.5}
    async with pipeline(model, 2, drafter="ngram", timeouts=timeouts) as running:
        before = [stage.incarnation for stage in running.stages]
        # Not for anything to happen: that nothing does for so long is what is tested.
        await asyncio.sleep(2 * timeouts["progress"])
        compute = running.stages[0]._compute
        assert compute is not None
        busy = compute.run(time.sleep, 4 * timeouts["heartbeat_interval"])
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)
        await busy
        assert [stage.incarnation for stage in running.stages] == before, "a stage was taken for lost"


async def test_a_session_of_which_nothing_is_sent_begins_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = forgotten = 0

    def next_segment(policy: Autoregressive, room: Room) -> DraftTokens | None:
        nonlocal asked, forgotten
        asked += 1
        if asked >= 8 and policy.session.epoch == 0:
            forgotten += 1
            return None  # a policy that has forgotten a session
        return choose(policy, room)

    choose = Autoregressive.next_segment
    monkeypatch.setattr(Autoregressive, "next_segment", next_segment)
    async with asyncio.timeout(30.0), pipeline(model, 2, timeouts={**QUICK, "progress": 0.1}) as running:
        assert list((await complete(running, PROMPT, "autoregressive")).token_ids) == alone(model, PROMPT, 24)
    assert forgotten


async def test_a_lost_segment_costs_no_token(model: Path) -> None:
    lost = 0

    def lose_one(hop: int, message: Message) -> bool:
        nonlocal lost
        if isinstance(message, Segment) and hop == 1 and message.number == 5 and not lost:
            lost += 1
            return True
        return False

    transport = MemoryTransport()
    async with pipeline(model, 3, transport=transport, drafter="ngram") as running:
        transport.faults = Faults(drop_forward=lose_one)
        results = await asyncio.gather(*(complete(running, PROMPT, "flowspec") for _ in range(2)))
        assert lost == 1
        assert all(list(result.token_ids) == alone(model, PROMPT, 24) for result in results)
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == alone(model, PROMPT, 24)


async def test_a_cancelled_stream_frees_its_rows_everywhere(model: Path) -> None:
    async with pipeline(model, 3, drafter="ngram") as running:
        async for _ in running.client.stream(prompt_token_ids=PROMPT, max_new_tokens=400, ignore_eos=True):
            break
        # The pipe is in order: what is asked now reaches every stage behind the close.
        await complete(running, PROMPT, "flowspec", max_new_tokens=2)
        async with asyncio.timeout(10):
            while any(stage.sessions for stage in running.stages):
                await running.client.status()
        assert running.coordinator.scheduler.idle


async def test_a_stop_string_ends_the_text_before_it(model: Path) -> None:
    async with pipeline(model, 2, drafter="ngram") as running:
        whole = await complete(running, PROMPT, "flowspec", max_new_tokens=40)
        stop = whole.text[10:13]
        result = await complete(running, PROMPT, "flowspec", max_new_tokens=40, stop=[stop])
        assert result.finish_reason == "stop"
        assert result.text == whole.text[: whole.text.index(stop)]
        assert whole.token_ids[: len(result.token_ids)] == result.token_ids


async def test_eos_ends_the_tokens_with_it(model: Path) -> None:
    async with pipeline(model, 2, drafter="ngram") as running:
        running.coordinator.admission.eos = frozenset(
            {whole := (await complete(running, PROMPT, "flowspec")).token_ids[9]}
        )
        for policy in ("autoregressive", "flowspec"):
            result = await complete(running, PROMPT, policy, ignore_eos=False)
            assert result.finish_reason == "eos"
            assert result.token_ids[-1] == whole
            assert whole not in result.token_ids[:-1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_new_tokens": 0}, RequestError, "max_new_tokens"),
        ({"max_new_tokens": -3}, RequestError, "max_new_tokens"),
        ({"max_new_tokens": 5000}, LimitExceeded, "limits.max_new_tokens"),
        ({"max_new_tokens": 505}, LimitExceeded, "context"),
        ({"temperature": -1.0}, RequestError, "temperature"),
        ({"top_p": 0.0}, RequestError, "top_p"),
        ({"policy": "guess"}, RequestError, "flowspec"),
        ({"seed": -1}, RequestError, "seed"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    model: Path, options: dict[str, object], error: type[FlowspecError], words: str
) -> None:
    async with pipeline(model, 1, drafter="none") as running:
        with pytest.raises(error, match=words):
            await complete(running, PROMPT, **{"policy": "flowspec", **options})  # type: ignore[arg-type]
        with pytest.raises(LimitExceeded, match="context"):
            await complete(running, [3] * 600, "flowspec")
        assert (await complete(running, PROMPT, "flowspec", max_new_tokens=2)).token_ids


async def test_a_stage_with_another_model_is_refused_with_both_names(model: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", layers=4, seed=1, hidden=48)
    transport = MemoryTransport()
    topology = Topology.local(str(model), 1, drafter="none", dtype="float64")
    stranger = Topology.from_document(type(topology._document)({**topology.as_values(), "model": str(other)}))
    async with (
        Coordinator(topology, transport=transport),
        StageNode(stranger, "stage-1", transport=transport) as stage,
    ):
        with pytest.raises(PipelineError, match=r"stage-1 and draft hold different models"):
            await stage.wait()


async def test_a_drafter_of_another_vocabulary_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", layers=1, vocab_size=400, tokenizer=False)
    topology = Topology.local(str(model), 1, drafter={"kind": "causal-lm", "model": str(other)})
    with pytest.raises(ModelError, match="vocabulary"):
        async with Coordinator(topology, transport=MemoryTransport()):
            pass


async def test_a_stage_whose_weights_are_damaged_says_which_file(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    topology = Topology.local(str(damaged), 1, drafter="none")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        async with StageNode(topology, "stage-1", transport=MemoryTransport()):
            pass


@dataclass(frozen=True, slots=True)
class Question(Message):
    kind: ClassVar[str] = "test-question"
    number: int


@dataclass(frozen=True, slots=True)
class Answer(Message):
    kind: ClassVar[str] = "test-answer"
    node: str
    number: int


register(Question)
register(Answer)


async def test_messages_of_ones_own_travel_down_the_pipe_and_back(model: Path) -> None:
    async with pipeline(model, 3, drafter="none") as running:
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        tail = running.stages[-1]

        async def answer(envelope: Envelope) -> None:
            assert isinstance(envelope.message, Question)
            await tail.send_to_coordinator(Answer(tail.name, envelope.message.number + 1))

        async def heard(envelope: Envelope) -> None:
            assert isinstance(envelope.message, Answer)
            answers.put_nowait(envelope.message)

        tail.on(Question, answer)
        running.coordinator.on(Answer, heard)
        running.coordinator.send_down(Question(41))
        async with asyncio.timeout(10):
            assert await answers.get() == Answer("stage-3", 42)


async def test_a_client_that_finds_the_pipe_unready_hears_who_is_missing(model: Path) -> None:
    transport = MemoryTransport()
    topology = Topology.local(str(model), 2, drafter="none", timeouts={"recovery": 0.3})
    async with (
        StageNode(topology, "stage-1", transport=transport),
        Coordinator(topology, transport=transport),
        Client(topology.client_address, transport=transport) as client,
    ):
        assert not (await client.status()).ready
        for words in ("not ready within", "not ready: it waits"):
            with pytest.raises(PipelineError, match=f"{words}.*stage-2"):
                await client.generate(prompt_token_ids=PROMPT)


async def test_emulated_stages_and_links_change_no_token(model: Path) -> None:
    slow = {
        "each_stage": {"emulate": {"base_ms": 1.0, "per_token_ms": 0.1}},
        "link": {"latency_ms": 1.0, "rate_mbit": 100.0},
    }
    async with pipeline(model, 3, drafter="ngram", **slow) as running:
        for policy in ("autoregressive", "flowspec"):
            assert list((await complete(running, PROMPT, policy)).token_ids) == alone(model, PROMPT, 24), policy
