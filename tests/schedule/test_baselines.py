"""What the baselines do, on a virtual clock: rounds, turns, levels, and what the stages compute of it."""

from __future__ import annotations

import pytest

from flowspec.schedule.rounds import near_equal
from tests.schedule.recording_pipe import PROMPT, Asked, RecordingPipe, run

CERTAIN = ((1.0,),)


def steps(pipe: RecordingPipe) -> list[Asked]:
    """Steps of the drafter behind the one that reads the prompt."""
    return [asked for asked in pipe.asked if asked.root >= len(PROMPT)]


@pytest.mark.parametrize(
    ("count", "parts", "sizes"), [(80, 5, [16] * 5), (7, 3, [3, 2, 2]), (2, 5, [1, 1]), (0, 5, []), (1, 1, [1])]
)
def test_chunks_are_near_equal_and_none_is_empty(count: int, parts: int, sizes: list[int]) -> None:
    pieces = near_equal(range(count), parts)
    assert [len(piece) for piece in pieces] == sizes
    assert [serial for piece in pieces for serial in piece] == list(range(count))


@pytest.mark.parametrize("policy", ["chunked", "pruned"])
def test_a_tree_of_80_goes_level_by_level_in_five_chunks_of_16(policy: str) -> None:
    pipe = run(policy)
    first = pipe.sent[:5]
    assert [len(sent.serials) for sent in first] == [16] * 5
    depths = [depth for sent in first for depth in sent.depths]
    assert depths == sorted(depths)
    assert max(depths) - depths[0] == 6
    assert len({sent.time for sent in first}) == 1


@pytest.mark.parametrize("policy", ["chunked", "pruned"])
def test_a_tree_takes_one_step_per_level_with_the_best_ten_of_each(policy: str) -> None:
    drafted = steps(run(policy))
    assert [len(asked.expand) for asked in drafted[:6]] == [1, 10, 10, 10, 10, 10]
    assert {asked.width for asked in drafted} == {10}


def test_chunked_drafts_only_when_all_of_the_tree_is_back() -> None:
    pipe = run("chunked")
    assert {asked.in_flight for asked in steps(pipe)} == {0}
    assert pipe.results["s"].finished is not None
    assert pipe.results["s"].finished.verdicts * 5 + 1 >= len(pipe.sent)


def test_pruned_drafts_when_the_rest_of_the_tree_is_dead_or_back() -> None:
    pipe = run("pruned")
    assert {asked.live for asked in steps(pipe)} == {0}
    assert any(asked.in_flight for asked in steps(pipe))


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("chunked", ()),
        ("lockstep", (("prune", "false"),)),
        ("flowspec", (("prune", "false"),)),
    ],
)
def test_without_pruning_every_stage_computes_all_that_was_sent(
    policy: str, options: tuple[tuple[str, str], ...]
) -> None:
    pipe = run(policy, *options)
    assert [stage.computed for stage in pipe.stages] == [pipe.tokens_sent] * 4  # type: ignore[attr-defined]
    assert [stage.abandoned for stage in pipe.stages] == [0] * 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", ["pruned", "pipedec", "lockstep", "flowspec"])
def test_with_pruning_the_stages_are_spared_dead_tokens(policy: str) -> None:
    pipe = run(policy)
    computed = [stage.computed for stage in pipe.stages]  # type: ignore[attr-defined]
    assert computed[0] <= pipe.tokens_sent
    assert computed[-1] < 0.9 * pipe.tokens_sent


def test_pipedec_sends_one_level_per_segment_and_no_more_segments_than_stages() -> None:
    pipe = run("pipedec", ("layer", "6"), ("top_k", "5"))
    assert all(len(set(sent.depths)) == 1 and len(sent.serials) <= 6 for sent in pipe.sent)
    assert {asked.width for asked in pipe.asked} == {5}
    sure = run("pipedec", ranks=CERTAIN)
    assert max(sent.in_flight for sent in sure.sent) == 4
    assert [sent.depths[0] for sent in sure.sent] == list(range(len(PROMPT), len(PROMPT) + len(sure.sent)))


def test_lockstep_fills_the_pipe_and_then_sends_all_that_waits_for_each_segment_that_returns() -> None:
    pipe = run("lockstep")
    assert [len(sent.serials) for sent in pipe.sent[:4]] == [16] * 4
    # 80 tokens were drafted; what a verdict leaves of the last 16 goes in the first turn.
    later = [sent for sent in pipe.sent[4:] if sent.time > pipe.sent[3].time]
    assert any(len(sent.serials) > 16 for sent in later)
    sure = run("lockstep", ranks=CERTAIN)
    assert max(sent.in_flight for sent in sure.sent) <= 4


def test_lockstep_expands_the_tree_after_every_acceptance_and_without_expansion_only_per_round() -> None:
    dynamic, static = run("lockstep"), run("lockstep", ("expansion", "false"))
    assert all(asked.live == 0 for asked in steps(static))
    assert any(asked.live > 0 for asked in steps(dynamic))
    # A certain drafter is always right: with expansion the first round never ends.
    sure = run("lockstep", ("segment", "2"), ranks=CERTAIN)
    rounds = run("lockstep", ("segment", "2"), ("expansion", "false"), ranks=CERTAIN)
    assert [asked.live for asked in steps(sure)].count(0) < [asked.live for asked in steps(rounds)].count(0)
    assert sure.results["s"].rate > rounds.results["s"].rate


def test_without_score_order_segments_go_level_by_level() -> None:
    def in_order(policy: str, switch: str) -> bool:
        first = [depth for sent in run(policy, ("score_order", switch)).sent[:4] for depth in sent.depths]
        return first == sorted(first)

    assert in_order("lockstep", "false")
    assert not in_order("lockstep", "true")


def test_without_expansion_the_continuous_tree_grows_only_until_its_first_verdict() -> None:
    static, dynamic = run("flowspec", ("expansion", "false")), run("flowspec")
    assert len(steps(static)) < len(steps(dynamic))


@pytest.mark.parametrize("policy", ["chunked", "pruned", "pipedec", "lockstep"])
def test_a_baseline_without_a_drafter_is_plain_decoding(policy: str) -> None:
    pipe = run(policy, tokens=12, drafter=False)
    assert [len(sent.serials) for sent in pipe.sent] == [1] * 11
    assert pipe.asked == []


def test_the_speeds_are_those_that_the_literature_leads_one_to_expect() -> None:
    def rate(policy: str, *options: tuple[str, str]) -> float:
        runs = [run(policy, *options, tokens=180, salt=salt, checks=False) for salt in (3, 4)]
        return sum(pipe.results["s"].rate for pipe in runs) / len(runs)

    chunked = rate("chunked")
    assert 1.7 < chunked / rate("autoregressive") < 2.3
    assert 1.1 < rate("pruned") / chunked < 1.5
    assert 1.1 < rate("pipedec") / chunked < 1.6
    lockstep = rate("lockstep")
    assert 1.4 < lockstep / chunked < 1.8
    assert rate("lockstep", ("prune", "false")) < lockstep
    assert rate("lockstep", ("expansion", "false")) < lockstep
    flowspec = rate("flowspec")
    assert flowspec > 1.6 * chunked
    assert rate("flowspec", ("prune", "false")) < flowspec
    assert rate("flowspec", ("expansion", "false")) < flowspec
