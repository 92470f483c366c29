"""Short campaigns of the long ones: strange inputs, and strangers at the ports."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flowspec.bench.fuzz import fuzz
from flowspec.bench.mutations import Mutator
from flowspec.wire.frames import decode, encode


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    logger = logging.getLogger("flowspec")
    before = logger.level
    yield
    logger.setLevel(before)


async def test_strange_inputs_are_refused_and_counted() -> None:
    campaign = await fuzz(4000, seed=1)
    assert (campaign.inputs, campaign.crashes) == (4000, 0)
    assert campaign.accepted + campaign.rejected.total() == 4000
    assert set(campaign.rejected) >= {"MalformedMessage", "OversizeMessage", "VersionMismatch", "TopologyError"}
    assert set(campaign.by_target) == {"frames", "topologies", "clients", "pipe"}


def test_the_same_seed_draws_the_same_inputs() -> None:
    first, second = Mutator(3), Mutator(3)
    assert [first.frames() for _ in range(50)] == [second.frames() for _ in range(50)]


def test_random_messages_are_valid_ones() -> None:
    mutator = Mutator(0)
    for _ in range(300):
        message = mutator.message()
        assert decode([bytes(frame) for frame in encode(message)]).message == message


def test_a_crash_is_counted_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    from flowspec.bench.fuzz import Campaign

    def crash() -> None:
        raise ZeroDivisionError("as it were")

    campaign = Campaign(0)
    campaign.try_one("frames", ValueError, crash, b"input")
    assert (campaign.crashes, campaign.met) == (1, False)
    assert "ZeroDivisionError" in capsys.readouterr().out
