"""What the desk keeps of requests, with clients that do as they like."""

from __future__ import annotations

from random import Random

from flowspec.bench.fuzzed_desk import FuzzedDesk
from flowspec.bench.mutations import Mutator
from flowspec.errors import FlowspecError
from flowspec.wire.messages import Cancel, Generate

PEER = b"client"


async def test_a_name_that_is_given_twice_stands_for_the_newer_request() -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk = fuzzed._desk
    asked = Generate("twice", "def", None, False, 8, None, None, None, None, None, None, (), True, None)
    fuzzed._ask(PEER, asked)
    fuzzed._ask(PEER, asked)
    first, second = desk.requests
    desk.fail(first, FlowspecError("lost"))
    assert list(desk.requests) == [second]
    fuzzed._ask(PEER, Cancel("twice"))
    assert not desk.requests
