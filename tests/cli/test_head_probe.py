"""What the trial of a draft head tells."""

from __future__ import annotations

import pytest

from flowspec.cli.head_probe import verdict_on
from flowspec.wire.messages import GenerationStats


def stats(drafted: int, accepted: int) -> GenerationStats:
    return GenerationStats(48, 1.0, 47.0, 0.1, 1.5, 30, drafted, accepted, drafted - accepted, 30, 1000)


@pytest.mark.parametrize(("drafted", "accepted", "doubted"), [(200, 20, False), (200, 3, True), (10, 0, False)])
def test_a_head_is_doubted_when_hardly_a_guess_is_right(drafted: int, accepted: int, doubted: bool) -> None:
    told = verdict_on("eagle3", stats(drafted, accepted))
    assert f"{accepted} of {drafted} guesses" in told
    assert ("drafter.taps" in told) == doubted
    assert all(len(line) <= 100 for line in told.splitlines())
