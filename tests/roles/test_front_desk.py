"""What the desk keeps of requests, with clients that do as they like."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from flowspec.bench.fuzzed_desk import FuzzedDesk
from flowspec.bench.mutations import Mutator
from flowspec.errors import FlowspecError, MalformedMessage, RequestError
from flowspec.model.text import TextStream
from flowspec.roles import front_desk
from flowspec.roles.admission import STOP_CHARACTERS, STOPS
from flowspec.roles.request import Request
from flowspec.schedule.events import FinishSession
from flowspec.wire.messages import Cancel, Failed, Generate, Message, StatusQuery

PEER = b"client"
ASKED = Generate("twice", "def", None, False, 8, None, None, None, None, None, None, (), True, None)


async def test_a_name_that_is_given_twice_stands_for_the_newer_request() -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk = fuzzed._desk
    fuzzed._ask(PEER, ASKED)
    fuzzed._ask(PEER, ASKED)
    first, second = desk.requests
    desk.fail(first, FlowspecError("lost"))
    assert list(desk.requests) == [second]
    fuzzed._ask(PEER, Cancel("twice"))
    assert not desk.requests


async def test_an_answer_that_cannot_be_encoded_costs_its_client_its_requests_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk, reached = fuzzed._desk, asyncio.Event()

    async def send(peer: bytes, message: Message) -> bool:
        if peer == b"odd":
            raise MalformedMessage("no room for that")
        if message == StatusQuery("y"):
            reached.set()
        return True

    monkeypatch.setattr(desk._clients, "send", send)
    fuzzed._ask(b"odd", ASKED)
    fuzzed._ask(PEER, ASKED)
    writing = asyncio.ensure_future(desk.write())
    desk.tell(b"odd", StatusQuery("x"))
    desk.tell(PEER, StatusQuery("y"))
    async with asyncio.timeout(10):
        await reached.wait()
    assert not writing.done()
    assert [request.admitted.peer for request in desk.requests.values()] == [PEER]
    desk.tell(b"odd", StatusQuery("x"))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await desk.flush()


async def test_one_client_has_no_more_requests_than_a_status_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_desk, "MAX_ITEMS", 2)
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    for number in range(2):
        fuzzed._ask(PEER, replace(ASKED, request=str(number)))
    with pytest.raises(FlowspecError, match="this client has 2 requests"):
        fuzzed._ask(PEER, replace(ASKED, request="2"))
    fuzzed._ask(b"another", ASKED)
    assert len(fuzzed._desk.requests) == 3


async def test_one_client_has_no_more_prompts_to_be_tokenized_than_requests_that_may_run_and_wait() -> None:
    desk = FuzzedDesk(Mutator(Random(1)))._desk
    for number in range(desk.reading.room + 1):
        desk._on_generate(PEER, replace(ASKED, request=str(number)))
    desk._on_generate(b"another", ASKED)
    assert (len(desk.reading), desk.queued) == (desk.reading.room + 1, desk.reading.room + 1)
    peer, refused = desk._outbox.get_nowait()
    assert isinstance(refused, Failed)
    assert (peer, refused.request, refused.error) == (PEER, str(desk.reading.room), "Overloaded")
    assert refused.retry_after is not None
    assert desk._outbox.empty()


async def test_who_is_too_late_for_the_line_when_its_prompt_is_tokenized_is_told_so() -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk = fuzzed._desk
    desk.hold = lambda: True
    for number in range(desk.waiting.room):
        fuzzed._ask(PEER, replace(ASKED, request=str(number)))
    tokens = replace(ASKED, prompt=None, prompt_token_ids=(1,))
    desk.waiting.leave(PEER, "0")
    desk._on_generate(b"text", ASKED)
    desk._on_generate(b"tokens", tokens)
    fuzzed._read_prompts()
    peer, refused = desk._outbox.get_nowait()
    assert isinstance(refused, Failed)
    assert (peer, refused.error) == (b"text", "Overloaded")
    assert "limits.waiting" in refused.message
    assert (desk._outbox.empty(), len(desk.reading), desk.waiting.full) == (True, 0, True)


@pytest.mark.parametrize(
    ("stop", "fits"),
    [(("a" * STOP_CHARACTERS,) * STOPS, True), (("a" * (STOP_CHARACTERS + 1),), False), (("a",) * 17, False)],
)
async def test_stop_strings_are_few_and_short(stop: tuple[str, ...], fits: bool) -> None:
    admission = FuzzedDesk(Mutator(Random(1)))._admission
    asked = replace(ASKED, stop=stop)
    if fits:
        admission.check(asked)
    else:
        with pytest.raises(RequestError, match=r"16 strings, .* 1024 characters"):
            admission.check(asked)


async def test_who_leaves_the_line_as_the_last_one_leaves_nobody_to_wait_for() -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk = fuzzed._desk
    desk.hold = lambda: True
    fuzzed._ask(PEER, ASKED)
    assert not desk.idle.is_set()
    fuzzed._ask(PEER, Cancel("twice"))
    assert desk.idle.is_set()


async def test_a_completed_stop_string_is_the_reason_whatever_limit_the_same_tokens_reach() -> None:
    admission = FuzzedDesk(Mutator(Random(1)))._desk.admission
    asked = replace(ASKED, stop=("add",), seed=1)
    admitted = admission.admit(asked, PEER, admission.read(asked))
    written = tuple(admission.tokenizer.encode(" add(one, two)"))
    request = Request(admitted, "s", TextStream(admission.tokenizer, admitted.stop), 0.0)
    request.push(written, (True,) * len(written), 1.0)
    assert request.stopped
    finished = request.finished(FinishSession("s", 0, "length", 0, 0, 0, 1, 1))
    assert finished.finish_reason == "stop"
    assert 0 < finished.stats.new_tokens < len(written)
    resumed = replace(admitted, resume=written, eos=frozenset(written[-1:]))
    assert Request(resumed, "s", TextStream(admission.tokenizer, admitted.stop), 0.0).over == "stop"
