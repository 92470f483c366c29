"""Qualities that write what was asked for, profiles and topologies as pipes, sweeps, traces, recordings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from flowspec.errors import ConfigurationError, TopologyError
from flowspec.planning.estimate import SWEEPS, Workload, changed, estimate, with_split, with_stages
from flowspec.planning.language import SyntheticLanguage
from flowspec.planning.pipe import LinkTime, SimulatedPipe, StageTime
from flowspec.planning.recording import Passage, Position, Recording
from flowspec.planning.simulator import simulate
from flowspec.planning.sources import draft_time, lacks_token_bytes, pipe_of_profile, pipe_of_topology
from flowspec.schedule.policies import POLICIES
from flowspec.synthetic.calibration import quality_for, tokens_per_round
from flowspec.synthetic.guesses import Quality
from flowspec.topology import Topology
from flowspec.topology.profiles import load_profile, profile_names
from flowspec.topology.sections import DraftEmulation
from flowspec.tracing.summary import summarise
from tests.planning.pipes import LANGUAGE, LINK, even

# ---- qualities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [4.0, 5.4, 6.2])
def test_chunked_writes_the_tokens_a_round_that_its_quality_was_found_for(wanted: float) -> None:
    language = SyntheticLanguage(quality_for(wanted))
    result = simulate(even(1), "chunked", language=language, tokens=1500)
    assert result.tokens_per_round == pytest.approx(wanted, rel=0.05)


def test_better_guesses_write_more_and_what_no_guesses_can_write_is_an_error() -> None:
    assert tokens_per_round(Quality(0.5)) < tokens_per_round(Quality(0.6)) < tokens_per_round(Quality(0.9))
    with pytest.raises(ConfigurationError, match="12 tokens a round") as refused:
        quality_for(12.0)
    assert "at most 6 drafts" in str(refused.value)


def test_the_range_that_a_refusal_names_is_accepted_to_its_ends() -> None:
    with pytest.raises(ConfigurationError) as refused:
        quality_for(12.0)
    found = re.search(r"writes (\S+) to (\S+)$", str(refused.value))
    assert found is not None
    for end in found.groups():
        assert 0.0 < quality_for(float(end)).mean < 1.0


@pytest.mark.parametrize("mean", [1e-9, 0.01, 0.999_999])
@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999_999])
def test_no_guess_is_impossible_or_certain(mean: float, draw: float) -> None:
    chances = Quality(mean).chances(draw, 64)
    assert all(0.0 < chance < 1.0 for chance in chances)
    assert sum(chances) <= 1.0


# ---- pipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_a_pipe(name: str) -> None:
    profile = load_profile(name)
    pipe = pipe_of_profile(profile)
    assert len(pipe.stages) == profile.stages
    for tokens in (1, 3, 16, 100):
        assert pipe.stages[0].of(tokens) == pytest.approx(profile.stage.seconds(tokens))
        assert pipe.draft.of(tokens) == pytest.approx(profile.draft.seconds(tokens))
        deep, longer = pipe_of_profile(profile, draft_layers=3), 1 + 2 * profile.draft.layer_share
        assert deep.draft.of(tokens) == pytest.approx(longer * pipe.draft.of(tokens))
        assert longer > 1
    assert simulate(pipe, "flowspec", language=LANGUAGE, tokens=12).tokens_per_second > 0.0


def test_a_topology_with_a_profile_is_the_same_pipe() -> None:
    topology = Topology.local("synthetic", 3, profile="paper-7b")
    assert pipe_of_topology(topology).profile() == pipe_of_profile(load_profile("paper-7b"), 3).profile()


def test_a_draft_step_longer_than_any_is_an_error_of_ours() -> None:
    endless = DraftEmulation(base_ms=3_600_000, layer_share=1.0)
    with pytest.raises(ValidationError):
        endless.of_layers(2)
    with pytest.raises(ConfigurationError, match="a drafter with 2 layers takes longer than can be emulated"):
        draft_time(endless, 2)


def test_hidden_states_without_bytes_matter_on_links_between_stages_that_have_a_rate() -> None:
    weightless = LinkTime(rate=1e6)
    stage, other = even(1).stages[0], LinkTime()
    for inner, lacking in ((weightless, True), (other, False), (replace(weightless, token_bytes=8), False)):
        pipe = SimulatedPipe((stage, stage), (weightless, inner, weightless))
        assert lacks_token_bytes(pipe) is lacking


def test_a_topology_may_give_each_node_and_link_its_own_times() -> None:
    topology = Topology.local(
        "demo", 2, each_stage={"emulate": {"base_ms": 10.0, "per_token_ms": 2.0}}, link={"latency_ms": 3.0}
    )
    pipe = pipe_of_topology(topology, {"stage-2": ((1, 0.5),)}, token_bytes=100)
    assert [stage.of(3) for stage in pipe.stages] == pytest.approx([0.016, 0.5])
    assert pipe.links == (LinkTime(latency=0.003, token_bytes=100),) * 3


def test_a_stage_of_unknown_speed_is_named() -> None:
    with pytest.raises(TopologyError, match="nothing says how long stage-1 takes"):
        pipe_of_topology(Topology.local("demo", 2))


# ---- sweeps ----------------------------------------------------------------------------------------------------------

WORKLOAD = Workload.synthetic(LANGUAGE, 2, tokens=24)


def test_a_longer_pipe_is_slower_per_token_and_a_divided_model_is_not() -> None:
    plain = [estimate(changed(even(2), WORKLOAD, "stages", n)[0], "autoregressive", WORKLOAD) for n in (2, 4)]
    assert plain[0].tokens_per_second > 1.8 * plain[1].tokens_per_second
    divided = [estimate(changed(even(2), WORKLOAD, "split", n)[0], "autoregressive", WORKLOAD) for n in (2, 4)]
    assert divided[0].tokens_per_second == pytest.approx(divided[1].tokens_per_second, rel=0.05)


UNEVEN = SimulatedPipe(
    (StageTime.line(0.010, 0.001, layers=4), StageTime(((1, 0.05), (8, 0.06), (64, 0.3)), layers=12)), (LINK,) * 3
)


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_a_divided_model_takes_as_long_as_all_of_its_stages_together(stages: int) -> None:
    divided = with_split(UNEVEN, stages)
    assert len(divided.stages) == stages
    for tokens in (1, 2, 5, 8, 40, 64, 200):
        whole = sum(stage.of(tokens) for stage in UNEVEN.stages)
        assert sum(stage.of(tokens) for stage in divided.stages) == pytest.approx(whole)
    assert {stage.layers for stage in divided.stages} == {max(1, round(16 / stages))}


def test_stages_that_differ_cannot_be_repeated() -> None:
    with pytest.raises(ConfigurationError, match="stages of different times cannot be swept") as refused:
        changed(UNEVEN, WORKLOAD, "stages", 4)
    assert "--profile" in str(refused.value)


@pytest.mark.parametrize("change", [with_stages, with_split])
def test_ways_back_stay_when_the_number_of_stages_changes(
    change: Callable[[SimulatedPipe, int], SimulatedPipe],
) -> None:
    near, middle, tail = LinkTime(latency=0.001), LinkTime(latency=0.002), LinkTime(latency=0.003)
    pipe = replace(even(3), returns=(near, middle, tail))
    assert change(pipe, 1).returns == (tail,)
    assert change(pipe, 4).returns == (near, near, near, tail)
    assert change(even(3), 4).returns == ()


@pytest.mark.parametrize(("key", "better", "worse"), [("latency", 1, 50), ("rate", 1000, 1), ("uneven", 1, 4)])
def test_what_makes_a_pipe_slower_does(key: str, better: float, worse: float) -> None:
    speeds = [
        estimate(changed(even(4), WORKLOAD, key, value)[0], "flowspec", WORKLOAD).tokens_per_second
        for value in (better, worse)
    ]
    assert speeds[0] > speeds[1]


def test_sessions_share_a_pipe_and_fill_it() -> None:
    pipe, crowd = changed(even(4), WORKLOAD, "sessions", 4)
    alone, together = (estimate(pipe, "flowspec", load) for load in (WORKLOAD, crowd))
    assert together.tokens_per_second < alone.tokens_per_second
    assert together.throughput > alone.throughput
    assert together.sessions == 4


@pytest.mark.parametrize(("key", "value"), [("colour", 1.0), ("stages", 1.5), ("stages", 0.0), ("latency", -1.0)])
def test_what_cannot_be_swept_is_an_error(key: str, value: float) -> None:
    with pytest.raises(ConfigurationError):
        changed(even(2), WORKLOAD, key, value)
    assert "stages" in SWEEPS


# ---- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trace_tells_what_the_result_tells(policy: str, tmp_path: Path) -> None:
    result = simulate(even(3), policy, language=LANGUAGE, tokens=40, trace=True)
    plain = simulate(even(3), policy, language=LANGUAGE, tokens=40)
    assert result.tokens_per_second == plain.tokens_per_second
    assert result.trace is not None
    result.trace.write(tmp_path / "trace.json")
    found = summarise(type(result.trace).read(tmp_path / "trace.json"))
    assert found.output_tokens == 40
    assert found.segments == result.segments
    assert found.drafted_tokens == result.drafted
    assert found.tokens_per_verdict == pytest.approx(result.tokens_per_verdict)
    for node in found.nodes[1:]:
        assert node.useful + node.wasted + node.idle == pytest.approx(1.0, abs=1e-3)


# ---- recordings ------------------------------------------------------------------------------------------------------

HEADER = '{"flowspec_recording": 2, "draft_layers": 1, "looks_text_up": false, "about": {}}'
TRUE = (5, 6, 7, 8, 9, 10, 11, 12)


def recorded() -> Recording:
    """The drafter's first guess is right at every second token; off the path one level was recorded."""
    positions = []
    for index, token in enumerate(TRUE):
        right = ((token, -0.1), (90, -2.5))
        wrong = ((91, -0.7), (92, -0.9))
        guesses = right if index % 2 else wrong
        positions.append(Position(token, {(): guesses, (guesses[-1][0],): ((93, -0.2),)}))
    return Recording((Passage((1, 2, 3), tuple(positions)),), draft_layers=3, about={"drafter": "by hand"})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recording_is_written_again_by_every_policy(policy: str) -> None:
    recording = recorded()
    result = simulate(even(2), policy, language=recording, tokens=1000, check=True)
    assert result.written == (TRUE,)
    if policy == "flowspec":
        # The last of the four that the drafter has right is sampled behind the one before it, and need not be sent.
        assert result.accepted == 3


@pytest.mark.parametrize("looks_text_up", [True, False])
def test_what_a_recorded_text_repeats_is_copied_where_its_drafter_looks_text_up(looks_text_up: bool) -> None:
    text = TRUE * 3
    passage = Passage((1, 2, 3), tuple(Position(token, {}) for token in text))
    result = simulate(even(2), language=Recording((passage,), looks_text_up=looks_text_up), tokens=1000, check=True)
    assert result.written == (text,)
    assert (result.accepted > 0) == looks_text_up


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    recorded().write(tmp_path / "run.jsonl")
    assert Recording.read(tmp_path / "run.jsonl") == recorded()


def test_what_json_leaves_inside_a_text_ends_no_line_of_a_recording(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    recorded().write(file)
    first, rest = file.read_text().split("\n", 1)
    about = {"drafter": "one\u2028two\u0085three"}
    file.write_text(
        json.dumps(json.loads(first) | {"about": about}, ensure_ascii=False) + "\n" + rest, encoding="utf-8"
    )
    assert Recording.read(file).about == about


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("nothing", 1),
        ('{"flowspec_recording": 9}', 1),
        ("[]", 1),
        (f"{HEADER}\n{{}}", 2),
        (HEADER.replace("1", "0"), 1),
    ],
)
def test_a_damaged_recording_names_the_line(tmp_path: Path, line: str, place: int) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=f"run.jsonl:{place} is no line of a recording"):
        Recording.read(file)


def test_what_was_not_recorded_is_drafted_like_what_was_and_never_comes_true() -> None:
    first = Position(TRUE[0], {(): ((90, -0.5), (91, -1.0))})
    passage = Passage((1, 2, 3), (first, *(Position(token, {}) for token in TRUE[1:])))
    result = simulate(even(2), language=Recording((passage,)), tokens=1000, check=True)
    assert result.written == (TRUE,)
    assert result.accepted == 0
    # The two guesses that were recorded, and more behind them and behind every later token.
    assert result.drafted > 2 + 2 * (len(TRUE) - 2)


def test_an_empty_recording_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(HEADER + "\n")
    with pytest.raises(ConfigurationError, match="holds no recorded text"):
        Recording.read(file)
