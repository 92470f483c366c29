"""The drafter of the fallback measurement is wrong, silent and right when it is meant to be."""

from __future__ import annotations

from flowspec.bench.fallback import SURE, KnowingDrafter
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import NO_PARENT, DraftTokens
from flowspec.wire.parameters import SamplingParameters

PROMPT_AND_OUTPUT = (5, 6, 7, 8, 9)


def drafter_of(honest_from: int) -> KnowingDrafter:
    drafter = KnowingDrafter(100)
    drafter.truth, drafter.honest_from = PROMPT_AND_OUTPUT, honest_from
    drafter.open("s", SamplingParameters(), 100)
    return drafter


def step(expand: tuple[int, ...], tokens: tuple[int, ...], parents: tuple[int, ...], first: int = 0) -> GrowTree:
    serials = tuple(range(first, first + len(tokens)))
    return GrowTree("s", 0, expand, DraftTokens(serials, parents, tokens), 1)


def test_it_tells_the_text_from_where_it_is_honest() -> None:
    drafter = drafter_of(3)
    prompt = step((1,), (5, 6), (NO_PARENT, 0))
    assert drafter.grow(prompt, 4) == ((1, ((8, SURE),)),)  # position 2 lies before 3: one beside the truth
    assert drafter.grow(step((2,), (7,), (1,), first=2), 4) == ((2, ((8, SURE),)),)
    assert drafter.grow(step((3,), (8,), (2,), first=3), 4) == ((3, ((9, SURE),)),)


def test_behind_a_wrong_token_it_knows_nothing() -> None:
    drafter = drafter_of(0)
    drafter.grow(step((1,), (5, 6), (NO_PARENT, 0)), 4)
    ((_, children),) = drafter.grow(step((2,), (99,), (1,), first=2), 4)
    assert children == ((2, SURE),)


def test_silence_is_an_answer_without_children() -> None:
    drafter = drafter_of(0)
    drafter.silent = True
    assert drafter.grow(step((1,), (5, 6), (NO_PARENT, 0)), 4) == ()
