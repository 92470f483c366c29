"""The opponents of flowspec: each way of `generate` writes the same tokens, and the comparison is by prompt."""

from __future__ import annotations

import pytest
import torch

from flowspec.bench.transformers_baseline import (
    FLOWSPEC,
    LOOKUP,
    PIPELINE,
    PLAIN,
    Completion,
    Outcome,
    SingleProcess,
    best,
    compare,
    print_table,
)

PROMPT = tuple(range(300, 340)) * 2


@pytest.fixture(scope="module")
def single() -> SingleProcess:
    return SingleProcess("demo", "demo-draft")


@pytest.mark.parametrize("guesses", [None, 3])
def test_an_assistant_changes_the_speed_and_not_the_tokens(single: SingleProcess, guesses: int | None) -> None:
    plain, assisted = single.plain(PROMPT, 24), single.assisted(PROMPT, 24, guesses)
    assert assisted.token_ids == plain.token_ids
    assert len(plain.token_ids) == 24
    assert min(plain.tokens_per_second, assisted.tokens_per_second) > 0


def test_prompt_lookup_changes_the_speed_and_not_the_tokens(single: SingleProcess) -> None:
    assert single.lookup(PROMPT, 24, 5).token_ids == single.plain(PROMPT, 24).token_ids


def test_the_faster_number_of_threads_stays_in_use(single: SingleProcess) -> None:
    before = torch.get_num_threads()
    try:
        assert single.use_faster((1, 2), PROMPT, 8) == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_the_ratio_is_that_of_the_prompts_and_the_best_setting_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """The second prompt ran on a slower machine: no contender's ratio depends on it."""
    tokens = (1, 2, 3)
    speeds = {
        (FLOWSPEC, "as it comes"): (100.0, 10.0),
        (PIPELINE, "4 stages"): (50.0, 5.0),
        (PLAIN, "plain"): (80.0, 8.0),
        (LOOKUP, "3 guesses"): (40.0, 4.0),
        (LOOKUP, "5 guesses"): (200.0, 20.0),
    }
    found = compare({name: [Completion(tokens, speed) for speed in both] for name, both in speeds.items()})
    assert [outcome.ratio for outcome in found] == [1.0, 2.0, 1.25, 2.5, 0.5]
    assert best(found)[LOOKUP] == Outcome(LOOKUP, "5 guesses", 110.0, 0.5, 2)
    print_table(found, 2)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
