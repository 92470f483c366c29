from __future__ import annotations

from flowspec.roles.soundings import MOST_UNDER_WAY, Outstanding, Soundings

STAGES = ["stage-1", "stage-2", "stage-3"]
OPENED = (("a", 1),)


def test_segments_are_known_when_the_tail_answers_and_openings_when_all_have() -> None:
    soundings = Soundings(STAGES)
    soundings.sent(1, Outstanding(7, OPENED))
    assert soundings.answered(1, "stage-1") is None
    assert soundings.answered(1, "stage-3") == Outstanding(7)
    assert soundings.answered(1, "stage-2") == Outstanding(7, OPENED)


def test_an_answer_to_an_unknown_probe_says_nothing() -> None:
    soundings = Soundings(STAGES)
    soundings.sent(1, Outstanding(7))
    soundings.clear()
    assert soundings.answered(1, "stage-3") is None


def test_a_probe_that_came_through_makes_the_older_ones_superfluous() -> None:
    soundings = Soundings(STAGES)
    soundings.sent(1, Outstanding(7))
    soundings.sent(2, Outstanding(9))
    for stage in STAGES:
        soundings.answered(2, stage)
    assert soundings.answered(1, "stage-3") is None


def test_the_stage_that_nothing_reaches_is_named() -> None:
    soundings = Soundings(STAGES)
    assert soundings.silent_stage() == "stage-1"
    for nonce in range(1, 2 * MOST_UNDER_WAY):
        soundings.sent(nonce, Outstanding(7))
        soundings.answered(nonce, "stage-1")
    assert soundings.silent_stage() == "stage-2"
