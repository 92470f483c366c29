"""What takes part: sweeps, settings, and what is refused before anything starts."""

from __future__ import annotations

import pytest

from flowspec.bench.efficiency import simulated_pipe
from flowspec.bench.matrix import Contender, ablations, contenders_of, read_settings, read_sweeps
from flowspec.bench.pipes import Pipe
from flowspec.errors import ConfigurationError, RequestError
from flowspec.schedule.options import read_options
from flowspec.topology.profiles import load_profile
from tests.bench.fake_runs import matrix, questions


def test_a_sweep_adds_every_combination_of_its_values_once() -> None:
    found = contenders_of(["flowspec", "chunked"], read_sweeps(["chunked.tree=40,80", "chunked.depth=4, 6"]))
    assert [each.label for each in found] == [
        "flowspec",
        "chunked",
        "chunked tree=40 depth=4",
        "chunked tree=40 depth=6",
        "chunked tree=80 depth=4",
    ]
    assert [each.swept for each in found] == [False, False, True, True, True]


def test_a_sweep_starts_from_the_settings_of_its_policy() -> None:
    found = contenders_of(["chunked"], read_sweeps(["chunked.tree=40"]), read_settings(["chunked.depth=4"]))
    assert found == (
        Contender("chunked", (("depth", "4"),)),
        Contender("chunked", (("depth", "4"), ("tree", "40")), swept=True),
    )


def test_sweeps_given_again_add_up_and_an_option_has_one_value() -> None:
    assert read_sweeps(["chunked.tree=40", "chunked.tree=120,40"]) == {"chunked": {"tree": ("40", "120")}}
    with pytest.raises(ConfigurationError, match="has no value"):
        read_sweeps(["chunked.tree=,"])
    assert read_settings(["chunked.tree=40", "chunked.tree=40"]) == {"chunked": (("tree", "40"),)}
    with pytest.raises(ConfigurationError, match=r"chunked\.tree two values, 40 and 80"):
        read_settings(["chunked.tree=40", "chunked.tree=80"])


def test_an_ablation_switches_off_one_mechanism_at_a_time() -> None:
    found = ablations((("tree", "32"),))
    assert [each.label for each in found] == [
        "flowspec tree=32 score_order=false",
        "flowspec tree=32 prune=false",
        "flowspec tree=32 expansion=false",
    ]
    for each in found:
        read_options(each.policy, each.options)


@pytest.mark.parametrize("text", ["chunked=40", "chunked.tree", ".tree=40", "chunked.=40", "chunked.tree="])
def test_a_sweep_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"POLICY\.OPTION=VALUE"):
        read_sweeps([text])


def test_unknown_policies_and_options_are_refused_before_anything_starts() -> None:
    with pytest.raises(RequestError, match="no policy 'psychic'"):
        contenders_of(["psychic"], {})
    with pytest.raises(RequestError, match="no option 'colour'"):
        contenders_of(["chunked"], read_sweeps(["chunked.colour=1"]))
    with pytest.raises(ConfigurationError, match="chunked, which does not take part"):
        contenders_of(["flowspec"], read_sweeps(["chunked.tree=40"]))


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no drafters"):
        matrix(drafters=())
    with pytest.raises(ConfigurationError, match="at least 2"):
        matrix(new_tokens=1)
    with pytest.raises(ConfigurationError, match="0 repeats"):
        matrix(repeats=0)


def test_a_pipe_tells_what_is_emulated_and_needs_a_profile_for_it() -> None:
    assert Pipe(stages=8).name == "8 stages, this machine"
    assert Pipe(profile="paper-7b", rate_mbit=50, slow_stage=2).name == (
        "4 stages, paper-7b, 50 Mbit/s, one 2 times slower"
    )
    with pytest.raises(ConfigurationError, match="profile"):
        Pipe(rate_mbit=50)
    with pytest.raises(ConfigurationError, match="profile"):
        Pipe("synthetic")


def test_the_watched_round_comes_last_and_is_apart() -> None:
    asked = matrix(questions(), temperatures=(0.0, 1.0), traced=True)
    jobs = list(asked.jobs())
    assert [job.traced for job in jobs] == [False] * 18 + [True] * 6
    assert {job.question for job in jobs[18:]} == {"0"}
    assert len(set(jobs)) == len(jobs)


def test_a_pipe_emulates_its_profile_with_what_is_said_to_differ() -> None:
    topology = Pipe("demo", 3, "paper-7b", rate_mbit=50, slow_stage=2).topology("hybrid:eagle3")
    profile = load_profile("paper-7b")
    bases = [stage.emulate.base_ms for stage in topology.stages if stage.emulate is not None]
    assert bases == [profile.stage.base_ms, 2 * profile.stage.base_ms, profile.stage.base_ms]
    assert topology.draft_node.emulate is not None
    assert topology.draft_node.emulate.draft is not None
    assert topology.draft_node.emulate.draft.base_ms == profile.draft.base_ms
    link = topology.link_emulation("draft", "stage-1")
    assert link is not None
    assert (link.rate_mbit, link.latency_ms) == (50, profile.link.latency_ms)
    assert (topology.effective_drafter.kind, topology.effective_drafter.of) == ("hybrid", "eagle3")


@pytest.mark.parametrize(
    ("given", "kind", "of", "model"),
    [
        ("eagle3", "eagle3", None, "demo"),
        ("eagle3=./mine", "eagle3", None, "./mine"),
        ("hybrid:eagle3=a:b=c", "hybrid", "eagle3", "a:b=c"),
        ("ngram", "ngram", None, None),
    ],
)
def test_a_drafter_is_named_by_its_kind_and_may_have_a_model(
    given: str, kind: str, of: str | None, model: str | None
) -> None:
    chosen = Pipe().topology(given).effective_drafter
    assert (chosen.kind, chosen.of, chosen.model) == (kind, of, model)


def test_what_is_simulated_are_the_devices_that_are_emulated() -> None:
    devices = simulated_pipe(Pipe("synthetic", 4, "paper-7b", rate_mbit=50, slow_stage=2))
    assert [stage.of(16) for stage in devices.stages] == pytest.approx([0.069, 0.138, 0.069, 0.069])
    assert devices.draft.of(10) == pytest.approx(0.010)
    assert len(devices.links) == 5
    assert devices.links[1].of(16) == pytest.approx(0.001 + (200 + 16 * 8192) * 8 / 50e6)
    assert devices.links[0].of(0) == pytest.approx(0.002)
