"""Profiles: the shipped ones are whole, those of one's own are checked, and topologies take their times."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flowspec.errors import TopologyError
from flowspec.topology import Topology
from flowspec.topology.document import Document, parse_document
from flowspec.topology.profiles import DIRECTORY, load_profile, profile_names

OWN = """
name: mine
title: my devices
model: my model
stages: 2
stage: {layers: 4, base_ms: 5, per_token_ms: 0.5}
draft: {base_ms: 2, per_token_ms: 0.25, layer_share: 0.5}
link: {latency_ms: 3, jitter_ms: 1}
"""


def test_the_profiles_that_come_with_flowspec() -> None:
    wanted = {"paper-7b", "paper-13b", "raspberry-pi-5", "two-gpus-1gbit", "wifi-20ms", "slow-link"}
    assert wanted <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_whole_and_says_how_it_was_derived(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.stage.seconds(16) > profile.draft.seconds(1) > 0
    text = (DIRECTORY / f"{name}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert all(any(f"  {part} " in line for line in comments) for part in ("stage", "draft", "link"))


def test_the_times_of_the_paper() -> None:
    profile = load_profile("paper-7b")
    assert profile.stage.seconds(1) == pytest.approx(0.060)
    assert profile.stage.seconds(16) == pytest.approx(0.069)
    assert profile.link.rate == 150e6 / 8
    assert load_profile("paper-13b").stage.seconds(16) == pytest.approx(5 * profile.stage.seconds(16), rel=0.05)


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(TopologyError, match="paper-13b, paper-7b"):
        load_profile("paper-70b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base_ms: 5", "base_ms: -5"), r"mine\.yaml:6: `stage\.base_ms`"),
        (("latency_ms", "latency"), r"mine\.yaml:8: `link\.latency`: unknown key\n  did you mean `latency_ms`"),
        (("stages: 2\n", ""), "`stages`: this key is missing"),
        ((OWN, "[1]"), "a profile is a mapping"),
    ],
)
def test_a_file_that_is_no_profile_cites_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN.replace(*change))
    with pytest.raises(TopologyError, match=message):
        load_profile(file)


def test_a_profile_of_ones_own_is_found_beside_the_topology(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    file = tmp_path / "nodes.yaml"
    file.write_text(
        "profile: ./mine.yaml\n"
        "nodes:\n"
        "  - {name: draft, role: draft, host: 127.0.0.1, port: 5700}\n"
        "  - {name: one, role: stage, host: 127.0.0.1, port: 5710}\n"
        "  - {name: two, role: stage, host: 127.0.0.1, port: 5720, emulate: {profile: paper-7b}}\n"
        "  - {name: three, role: stage, host: 127.0.0.1, port: 5730, emulate: {base_ms: 1}}\n"
    )
    topology = Topology.load(file)
    draft, one, two, three = (topology.node(name).emulate for name in ("draft", "one", "two", "three"))
    assert draft is not None
    assert draft.draft is not None
    assert (draft.draft.base_ms, draft.draft.per_token_ms, draft.draft.layer_share) == (2, 0.25, 0.5)
    times = [(each.base_ms, each.per_token_ms) for each in (one, two, three) if each is not None]
    assert times == [(5, 0.5), (59.4, 0.6), (1, 0)]
    link = topology.link_emulation("draft", "one")
    assert link is not None
    assert (link.latency, link.jitter, link.rate, link.message) == (0.003, 0.001, None, None)


def test_a_topologys_own_links_come_before_those_of_the_profile() -> None:
    topology = Topology.local(
        stages=2,
        profile="paper-7b",
        links=[{"from": "stage-1", "to": "stage-2", "latency_ms": 40}],
    )
    own, others = topology.link_emulation("stage-1", "stage-2"), topology.link_emulation("draft", "stage-1")
    assert own is not None
    assert others is not None
    assert (own.latency, own.rate, others.message) == (0.04, None, 0.002)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": "nope"}, "`profile`: there is no profile 'nope'; known are paper-13b"),
        ({"each_stage": {"emulate": {"profile": "nope"}}}, r"`nodes\.1\.emulate\.profile`: there is no profile"),
        ({"each_stage": {"emulate": {"profile": "paper-7b", "base_ms": 1}}}, "leave out base_ms"),
        ({"each_stage": {"emulate": {"draft": {"base_ms": 1}}}}, "a stage has no drafter"),
        ({"drafter": "synthetic"}, "knows the text of the model synthetic; this one is demo"),
        ({"synthetic": {"seed": 1}}, "belongs to the model synthetic"),
        (
            {"model": "synthetic", "drafter": "hybrid"},
            "no weights and no hidden states, which a drafter of kind hybrid reads",
        ),
        (
            {"model": "synthetic", "drafter": {"kind": "causal-lm", "model": "demo"}},
            "its drafters are synthetic, ngram",
        ),
        ({"model": "synthetic", "drafter": {"kind": "auto", "model": "x"}}, "has no draft model"),
        ({"model": "synthetic", "each_stage": {"model": "demo"}}, "stage-1 has the model demo"),
        ({"model": "synthetic", "synthetic": {"quality": 0.5, "tokens_per_round": 3.0}}, "not both"),
        ({"model": "synthetic", "synthetic": {"quality": 1.0}}, r"`synthetic\.quality`"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        Topology.local(stages=1, **values)


def test_a_draft_node_emulates_steps_and_no_layers() -> None:
    draft, stage = Topology.local(stages=1).as_values()["nodes"]
    with pytest.raises(TopologyError, match="write the time of a draft step as draft"):
        Topology.local().replace(nodes=[{**draft, "emulate": {"base_ms": 3}}, stage])


def test_the_synthetic_models_own_drafter() -> None:
    assert Topology.local("synthetic").effective_drafter.kind == "synthetic"
    assert Topology.local("synthetic", drafter="ngram").effective_drafter.kind == "ngram"


PAGE = (Path(__file__).parents[2] / "docs" / "emulation.md").read_text()


@pytest.mark.parametrize("name", profile_names())
def test_the_page_shows_a_profiles_figures(name: str) -> None:
    profile = load_profile(name)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, stages, stage, step, _, _, _ = (cell.strip() for cell in row.split("|"))
    times = [f"{profile.stage.seconds(tokens) * 1000:.4g}" for tokens in (1, 16)]
    shown = (str(profile.stages), f"{times[0]} / {times[1]} ms", f"{profile.draft.seconds(1) * 1000:.4g} ms")
    assert (stages, stage, step) == shown


def test_the_topology_on_the_page_works() -> None:
    example = parse_document(re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[0]).value
    topology = Topology.from_document(Document(example))
    slow = topology.stages[1].emulate
    assert slow is not None
    assert (topology.effective_drafter.kind, slow.base_ms) == ("synthetic", 120)
