"""Who may take part, told as a sequence of messages and times: no sockets, no clock."""

from __future__ import annotations

import pytest

from flowspec.roles.handshake import Handshake
from flowspec.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello, TimeCurve

PATIENCE = 1.5
CURVE = TimeCurve((1,), (0.01,))


def hello(incarnation: str, *, host: str = "host", node: str = "stage-1") -> Hello:
    return Hello(
        PROTOCOL_VERSION, node, incarnation, "model", "words", "float32", 0, 8, 1, CURVE, CURVE, host, 2, 1 << 30, 64
    )


def heartbeat(incarnation: str) -> Heartbeat:
    return Heartbeat("stage-1", incarnation, 1, 0, 0.0, 0, 0)


@pytest.fixture
def handshake() -> Handshake:
    made = Handshake(["stage-1"], coordinator="draft", fingerprint="model", tokenizer="words", layers=8)
    assert made.hello(hello("first"), 0.0, PATIENCE) is None
    assert made.welcomed == ("first",)
    return made


def test_a_restarted_stage_takes_its_place_when_the_former_one_has_been_silent(handshake: Handshake) -> None:
    assert handshake.hello(hello("again"), 5.0, PATIENCE) is None
    assert handshake.welcomed == ("first",)
    replaced = handshake.hello(hello("again"), 5.0 + PATIENCE, PATIENCE)
    assert replaced is not None
    assert handshake.welcomed == ("again",)
    assert not handshake.refused


@pytest.mark.parametrize(("host", "place"), [("host", "on the same machine"), ("else", "on another machine")])
def test_a_second_stage_of_the_same_name_is_refused_and_the_first_keeps_its_place(
    handshake: Handshake, host: str, place: str
) -> None:
    assert handshake.hello(hello("second", host=host), 5.0, PATIENCE) is None
    handshake.heartbeat(heartbeat("first"), 5.0 + PATIENCE)
    assert handshake.hello(hello("second", host=host), 5.1 + PATIENCE, PATIENCE) is None
    assert handshake.refused == {"second": f"a second node named stage-1: one is alive already, {place}"}
    assert handshake.welcomed == ("first",)


def test_what_the_former_stage_had_said_before_it_ended_does_not_refuse_the_next(handshake: Handshake) -> None:
    """It waited in another queue than the newcomer's hello."""
    assert handshake.hello(hello("again"), 5.0, PATIENCE) is None
    handshake.heartbeat(heartbeat("first"), 5.001)
    assert handshake.hello(hello("again"), 5.0 + PATIENCE, PATIENCE) is None
    assert handshake.hello(hello("again"), 5.001 + PATIENCE, PATIENCE) is not None
    assert handshake.welcomed == ("again",)


def test_a_pause_of_the_coordinator_does_not_make_a_former_stage_alive(handshake: Handshake) -> None:
    handshake.heartbeat(heartbeat("first"), 4.9)
    assert handshake.hello(hello("again"), 5.0, PATIENCE) is None
    handshake.excuse(3.0)
    assert handshake.hello(hello("again"), 8.1, PATIENCE) is None
    assert not handshake.refused
    assert handshake.hello(hello("again"), 8.0 + PATIENCE, PATIENCE) is not None
    assert handshake.welcomed == ("again",)


def test_a_stage_that_was_lost_is_replaced_at_once(handshake: Handshake) -> None:
    assert [peer.name for peer in handshake.silent(9.0, 5.0)] == ["stage-1"]
    assert handshake.hello(hello("again"), 9.1, PATIENCE) is None
    assert handshake.welcomed == ("again",)
