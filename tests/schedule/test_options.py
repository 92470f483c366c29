"""What a request may say about its policy, and what it hears when it says something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowspec.errors import RequestError
from flowspec.schedule.continuous import ContinuousSettings
from flowspec.schedule.options import (
    OPTIONS,
    ChunkedOptions,
    FlowspecOptions,
    LockstepOptions,
    describe,
    known_options,
    read_options,
)
from flowspec.schedule.policies import POLICIES, continuous_settings

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_defaults_are_those_of_the_policy() -> None:
    assert continuous_settings(ContinuousSettings(), FlowspecOptions()) == ContinuousSettings()
    assert FlowspecOptions().prunes
    assert not ChunkedOptions().prunes


def test_options_are_read_from_text_and_the_later_of_two_counts() -> None:
    found = read_options("lockstep", [("tree", "8"), ("tree", " 9 "), ("prune", "False"), ("depth", "16")])
    assert found == LockstepOptions(tree=9, prune=False, depth=16)
    assert not found.prunes


@pytest.mark.parametrize(
    ("policy", "name", "value", "message"),
    [
        ("chunked", "trees", "8", "the policy chunked has no option 'trees'"),
        ("autoregressive", "tree", "8", "the policy autoregressive has no option 'tree'"),
        ("flowspec", "live_tokens", "8", "the policy flowspec has no option 'live_tokens'"),
        ("pruned", "chunks", "0", "the option chunks of the policy pruned cannot be '0'"),
        ("pruned", "depth", "17", "the option depth of the policy pruned cannot be '17'"),
        ("pipedec", "layer", "1.5", "the option layer of the policy pipedec cannot be '1.5'"),
        ("lockstep", "prune", "1", "the option prune of the policy lockstep cannot be '1'"),
        ("flowspec", "tree", "", "the option tree of the policy flowspec cannot be ''"),
    ],
)
def test_errors_name_option_and_policy_and_what_there_is(policy: str, name: str, value: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        read_options(policy, [(name, value)])
    known = known_options(OPTIONS[policy])
    assert caught.value.hint is not None
    assert all(describe(option) in caught.value.hint for option in known.values())
    assert policy in caught.value.hint


def test_an_unknown_policy_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(RequestError, match="there is no policy 'naive'") as caught:
        read_options("naive")
    assert caught.value.hint == f"policies: {', '.join(POLICIES)}"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_page_lists_every_option_with_its_default_and_range(policy: str) -> None:
    section = PAGE.read_text().partition(f"## `{policy}`")[2].partition("\n## ")[0]
    assert section, f"docs/policies.md has no section on {policy}"
    rows = [
        tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")[:3])
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    expected = []
    for name, option in known_options(OPTIONS[policy]).items():
        switch = isinstance(option.default, bool)
        allowed = "true, false" if switch else f"{option.metadata['least']} to {option.metadata['most']}"
        expected.append((name, str(option.default).lower(), allowed))
    assert rows == expected
