"""The simulator against closed forms, against the text that must come out, and against random pipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import ConfigurationError
from flowspec.planning.language import SyntheticLanguage
from flowspec.planning.pipe import DraftTime, LinkTime, Overheads, SimulatedPipe, StageTime
from flowspec.planning.simulator import simulate
from flowspec.schedule.options import OPTIONS
from flowspec.schedule.policies import POLICIES
from flowspec.synthetic.guesses import Quality, SyntheticGuesses
from flowspec.synthetic.text import SyntheticText
from tests.planning.pipes import DRAFT, LANGUAGE, LINK, STAGE, Clueless, even


def text(seed: int, count: int, prompt: int = 64) -> tuple[int, ...]:
    return tuple(SyntheticText(seed).token(prompt + index) for index in range(count))


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_plain_decoding_takes_the_sum_of_stages_and_links_per_token(stages: int) -> None:
    result = simulate(even(stages), "autoregressive", language=LANGUAGE, tokens=20)
    token = stages * STAGE.of(1) + 2 * LINK.of(0) + (stages - 1) * LINK.of(1)
    assert result.tokens_per_second == pytest.approx(1 / token)
    assert result.cost == pytest.approx(19 / 20)
    assert result.tokens_per_round == result.tokens_per_verdict == 1.0


def test_the_prompt_takes_one_way_through_the_pipe_after_the_session_is_open() -> None:
    result = simulate(even(3), "autoregressive", language=LANGUAGE, tokens=1, prompt=16)
    opening = 4 * LINK.of(0)
    prefill = 3 * STAGE.of(16) + 2 * LINK.of(16) + 2 * LINK.of(0)
    assert result.time_to_first_token == pytest.approx(opening + prefill)


@pytest.mark.parametrize("prompt", [1, 2, 64, 65])
def test_a_plain_round_writes_one_token_whatever_the_prompt(prompt: int) -> None:
    result = simulate(even(2), "autoregressive", language=LANGUAGE, tokens=20, prompt=prompt)
    assert result.tokens_per_round == 1.0


def seconds_per_round(pipe: SimulatedPipe) -> float:
    """Of rounds that write one token each; the last ones are left out, since their trees are cut short."""
    shorter, longer = (simulate(pipe, "chunked", language=Clueless(), tokens=tokens) for tokens in (20, 40))
    assert longer.tokens_per_round == 1.0
    return (longer.seconds - shorter.seconds) / 20


def test_a_round_of_chunks_takes_its_draft_and_the_pipelined_chunks() -> None:
    draft = 6 * DRAFT.of(1)
    first = 4 * STAGE.of(16) + 3 * LINK.of(16) + 2 * LINK.of(0)
    others = 4 * STAGE.of(16)
    assert seconds_per_round(even(4)) == pytest.approx(draft + first + others)


def test_a_link_carries_one_segment_after_the_other() -> None:
    slow = LinkTime(latency=0.001, rate=1e6, message=0.0, token_bytes=10_000)
    pipe = SimulatedPipe.even(2, StageTime.line(0.001), slow, DRAFT)
    assert seconds_per_round(pipe) == pytest.approx(6 * DRAFT.of(1) + 2 * 0.001 + 5 * slow.busy(16) + slow.latency)


class Reading(SyntheticGuesses):
    """Guesses of a drafter that notes of how many positions it has read hidden states."""

    def __init__(self) -> None:
        super().__init__(LANGUAGE.seed, LANGUAGE.quality)
        self.known: list[int] = []

    def learn(self, count: int) -> None:
        self.known.append(count)


@dataclass(frozen=True)
class Read(SyntheticLanguage):
    drafter: Reading = field(default_factory=Reading)

    def guesses(self, session: int) -> Reading:
        return self.drafter


@pytest.mark.parametrize("policy", POLICIES)
def test_a_drafter_that_reads_hidden_states_gets_those_of_accepted_tokens_in_order(policy: str) -> None:
    language = Read(LANGUAGE.quality, LANGUAGE.seed)
    result = simulate(even(3), policy, language=language, tokens=40, prompt=64, check=True)
    known = language.drafter.known
    assert known == sorted(set(known))
    # The prompt first, in parts; in the end all but what the last verdicts brought, which nobody drafts behind.
    assert known[0] <= 64
    assert 64 + 40 - 3 * result.tokens_per_verdict - 1 <= known[-1]
    assert result.written == (text(LANGUAGE.seed, 40),)


def test_hidden_states_that_come_late_are_read_late() -> None:
    counts = []
    for seconds in (0.001, 3600.0):
        language = Read(LANGUAGE.quality, LANGUAGE.seed)
        pipe = replace(even(2), returns=(LinkTime(latency=seconds), LINK))
        simulate(pipe, "chunked", language=language, tokens=20)
        counts.append(len(language.drafter.known))
    assert counts[0] > counts[1]


def test_overheads_add_up_where_they_are_said_to() -> None:
    overheads = Overheads(message=0.001, segment=0.002, decision=0.003)
    bare = simulate(even(3), "autoregressive", language=LANGUAGE, tokens=20)
    loaded = simulate(even(3), "autoregressive", language=LANGUAGE, tokens=20, overheads=overheads)
    more = 4 * overheads.message + 3 * overheads.segment + overheads.decision
    assert 1 / loaded.tokens_per_second - 1 / bare.tokens_per_second == pytest.approx(more)


def test_stages_that_share_one_core_take_turns() -> None:
    stage = StageTime.line(0.01)
    own = SimulatedPipe.even(4, stage)
    shared = SimulatedPipe(own.stages, own.links, own.draft, cores=1)
    alone, crowded = (
        simulate(pipe, "autoregressive", language=LANGUAGE, tokens=30, sessions=4) for pipe in (own, shared)
    )
    assert alone.throughput == pytest.approx(1 / 0.01, rel=0.05)
    assert crowded.throughput == pytest.approx(1 / 0.04, rel=0.05)


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_writes_the_text_of_each_session(policy: str) -> None:
    result = simulate(even(3), policy, language=LANGUAGE, tokens=40, sessions=3, check=True)
    assert result.written == tuple(text(seed, 40) for seed in range(3))
    assert result.tokens == 120


@pytest.mark.parametrize("policy", POLICIES)
def test_a_simulation_repeats_itself(policy: str) -> None:
    first, again = (simulate(even(4), policy, language=LANGUAGE, tokens=60) for _ in range(2))
    assert first == again


def test_dead_work_is_abandoned_and_never_computed_downstream() -> None:
    result = simulate(even(4), "flowspec", language=LANGUAGE, tokens=200)
    assert all(later <= earlier for earlier, later in pairwise(result.occupancy))
    assert result.drafted == result.accepted + result.pruned + (result.drafted - result.accepted - result.pruned)
    assert result.accepted + result.pruned <= result.drafted


def test_a_policy_that_does_not_prune_computes_the_same_everywhere() -> None:
    result = simulate(even(4), "chunked", language=LANGUAGE, tokens=100)
    assert max(result.occupancy) == pytest.approx(min(result.occupancy))


def test_better_guesses_are_faster() -> None:
    rates = [
        simulate(even(4), "flowspec", language=SyntheticLanguage(Quality(mean)), tokens=200).tokens_per_second
        for mean in (0.3, 0.6, 0.9)
    ]
    assert rates == sorted(rates)


# ---- random pipes ----------------------------------------------------------------------------------------------------

SECONDS = st.floats(0.0, 0.1)
STAGES = st.builds(StageTime.line, SECONDS, st.floats(0.0, 0.01), st.integers(1, 8))
LINKS = st.builds(
    LinkTime,
    SECONDS,
    st.none() | st.floats(1e4, 1e9),
    st.none() | SECONDS,
    st.just(0.0) | SECONDS,
    st.integers(0, 10_000),
)


@st.composite
def pipes(draw: st.DrawFn) -> SimulatedPipe:
    stages = draw(st.lists(STAGES, min_size=1, max_size=6))
    links = draw(st.lists(LINKS, min_size=len(stages) + 1, max_size=len(stages) + 1))
    drafts = draw(st.builds(DraftTime, SECONDS, st.floats(0.0, 0.01)))
    return SimulatedPipe(tuple(stages), tuple(links), drafts, draw(st.none() | st.integers(1, 4)))


@settings(max_examples=60, deadline=None)
@given(
    pipe=pipes(),
    policy=st.sampled_from(POLICIES),
    quality=st.floats(0.05, 0.95),
    tokens=st.integers(1, 25),
    sessions=st.integers(1, 4),
    prompt=st.integers(1, 80),
    overheads=st.builds(Overheads, SECONDS, SECONDS, SECONDS, SECONDS),
    seed=st.integers(0, 1000),
)
def test_no_pipe_hangs_loses_a_segment_or_writes_another_text(
    pipe: SimulatedPipe,
    policy: str,
    quality: float,
    tokens: int,
    sessions: int,
    prompt: int,
    overheads: Overheads,
    seed: int,
) -> None:
    result = simulate(
        pipe,
        policy,
        language=SyntheticLanguage(Quality(quality), seed),
        tokens=tokens,
        sessions=sessions,
        prompt=prompt,
        overheads=overheads,
        seed=seed,
        check=True,
    )
    assert result.written == tuple(text(seed + number, tokens, prompt) for number in range(sessions))
    assert all(0.0 <= share <= 1.0 for share in result.occupancy)


def test_a_pipe_needs_a_link_before_and_behind_each_stage() -> None:
    with pytest.raises(ConfigurationError, match="2 stages and 2 links"):
        SimulatedPipe((STAGE, STAGE), (LINK, LINK))


def test_every_policy_has_options_that_the_simulator_reads() -> None:
    assert set(POLICIES) == set(OPTIONS)
