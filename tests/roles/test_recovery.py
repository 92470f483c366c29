"""What a coordinator does about the words of stages, and how often it speaks of them."""

from __future__ import annotations

from random import Random

import pytest

from flowspec.bench.fuzzed_desk import FuzzedDesk
from flowspec.bench.mutations import Mutator
from flowspec.roles.recovery import Recovery
from flowspec.schedule.events import Event, SessionBroken
from flowspec.wire.messages import Generate, Trouble


async def test_a_session_that_begins_again_and_again_for_one_reason_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fuzzed = FuzzedDesk(Mutator(Random(1)))
    desk, heard = fuzzed._desk, list[Event]()
    recovery = Recovery(desk, fuzzed._scheduler, heard.append)
    fuzzed._ask(b"one", Generate("r", "def", None, False, 8, None, None, None, None, None, None, (), True, None))
    (session,) = desk.requests
    for epoch in range(8):
        recovery.session_broken(Trouble("stage-2", session, epoch, "the largest logit is inf"))
    recovery.session_broken(Trouble("stage-2", session, 8, "no room"))
    recovery.session_broken(Trouble("stage-2", "of long ago", 0, "no room"))
    assert [record.getMessage() for record in caplog.records] == [
        f"session {session} begins again: stage-2: the largest logit is inf",
        f"session {session} begins again: stage-2: no room",
    ]
    broken = [event.session for event in heard if isinstance(event, SessionBroken)]
    assert broken == [session] * 9 + ["of long ago"]
