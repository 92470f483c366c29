"""The fast sampler draws what the law, followed word by word, draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowspec.errors import InvariantViolation, PipelineError
from flowspec.model import cuts, sampling
from flowspec.model.ranking import topmost
from flowspec.model.sampling import SHARPNESS, Sampler, TokenHistory, draw_seed
from flowspec.wire.parameters import MAX_SEED, SamplingParameters
from tests.sampling import naive

VOCABULARY = 40
ROUNDING = 2 * float(np.finfo(np.float32).eps)
"""Relative: scores are float32, and a last digit of a large one is above 1e-6."""

# Few distinct values, so that ties are everywhere; and finely spread ones.
logits_of_all_kinds = st.one_of(
    arrays(np.float32, VOCABULARY, elements=st.sampled_from([-np.inf, -4.0, -1.0, 0.0, 0.5, 2.0, 7.0])),
    arrays(np.float32, VOCABULARY, elements=st.floats(-30, 30, width=32)),
).filter(lambda values: np.isfinite(values.max()))

all_parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 0.8, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 39, 40, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.5, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, MAX_SEED),
)


@given(
    logits_of_all_kinds,
    all_parameters,
    st.integers(0, 2**20),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
)
def test_the_token_is_the_one_of_the_law(
    logits: np.ndarray, parameters: SamplingParameters, position: int, before: list[int], path: list[int]
) -> None:
    sampler = Sampler(parameters, VOCABULARY)
    history = TokenHistory(VOCABULARY)
    history.add(before)
    seen = {*before, *path} if sampler.needs_history else set()
    expected = naive.sample(logits, position, parameters, seen)
    tensor = torch.from_numpy(logits.copy())
    assert sampler.sample(tensor, position, history, path) == expected
    assert sampler.explain(tensor, position, history, path).token == expected
    assert sampler.rank(tensor.unsqueeze(0), [position], 3, history, [path])[0][0][0] == expected
    assert tensor.tolist() == logits.tolist()


@given(logits_of_all_kinds, all_parameters, st.integers(0, 2**20), st.sets(st.integers(0, VOCABULARY - 1), max_size=6))
def test_logits_of_a_part_of_the_vocabulary_are_ranked_as_if_the_rest_were_impossible(
    logits: np.ndarray, parameters: SamplingParameters, position: int, seen: set[int]
) -> None:
    ids = np.flatnonzero(np.isfinite(logits))
    history = TokenHistory(VOCABULARY)
    history.add(seen)
    whole, part = Sampler(parameters, VOCABULARY), Sampler(parameters, len(ids), ids)
    rows = torch.from_numpy(logits)[None]
    expected = whole.rank(rows, [position], 5, history, [()])[0]
    found = part.rank(rows[:, ids], [position], 5, history, [()])[0]
    assert [token for token, _ in found] == [token for token, _ in expected]
    # The two sum up in different orders.
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=ROUNDING, abs=1e-6)
    token = whole.sample(rows[0], position, history)
    assert part.sample(rows[0, ids], position, history) == token
    assert part.explain(rows[0, ids], position, history).token == token


@pytest.mark.parametrize("parameters", [SamplingParameters(temperature=1.0), SamplingParameters(1.0, top_p=0.9)])
def test_a_large_part_of_a_vocabulary_has_the_noise_of_its_tokens(parameters: SamplingParameters) -> None:
    ids = np.sort(np.random.default_rng(2).choice(40_000, 9000, replace=False))
    logits = torch.full((1, 40_000), -torch.inf)
    logits[:, ids] = torch.randn(1, 9000, generator=torch.Generator().manual_seed(1)) * 4
    whole, part = Sampler(parameters, 40_000), Sampler(parameters, 9000, ids)
    for position in range(20):
        expected = whole.rank(logits, [position], 3)[0]
        found = part.rank(logits[:, ids], [position], 3)[0]
        assert [token for token, _ in found] == [token for token, _ in expected]
        assert part.sample(logits[0, ids], position) == found[0][0]


@pytest.mark.parametrize("ids", [[0, 2], [0, 2, 2], [3, 2, 5]])
def test_ids_of_a_part_must_fit_and_increase(ids: list[int]) -> None:
    with pytest.raises(InvariantViolation, match="must increase"):
        Sampler(SamplingParameters(), 3, np.array(ids))


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=0.8),
        SamplingParameters(temperature=0.8, top_p=0.95),
        SamplingParameters(temperature=1.2, top_k=1500, top_p=0.9),
        SamplingParameters(temperature=1.0, min_p=0.05),
        SamplingParameters(temperature=0.7, top_k=50, top_p=0.99, min_p=0.01, repetition_penalty=1.2),
    ],
    ids=["no cut", "top-p", "wide top-k", "min-p", "all"],
)
def test_a_wide_nucleus_is_cut_exactly_too(parameters: SamplingParameters, spread: float) -> None:
    vocabulary = 12_000
    logits = np.random.default_rng(1).normal(size=vocabulary).astype(np.float32) * spread
    sampler = Sampler(parameters, vocabulary)
    path = [5, 6, 7]
    s, kept = naive.processed(logits, parameters, path if sampler.needs_history else ())
    noised = s + sampling.gumbel(parameters.seed, 4, np.arange(vocabulary))
    expected = max(sorted(kept), key=lambda token: noised[token])
    assert sampler.sample(torch.from_numpy(logits), 4, None, path) == expected


@given(logits_of_all_kinds, st.sampled_from([0, 1, 7, 39]), st.sampled_from([1.0, 0.9, 0.5]), st.integers(1, 12))
def test_the_kept_set_does_not_depend_on_how_many_tokens_are_looked_at_first(
    logits: np.ndarray, top_k: int, top_p: float, first_look: int
) -> None:
    parameters = SamplingParameters(temperature=1.0, top_k=top_k, top_p=top_p)
    s, expected = naive.processed(logits, parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "FIRST_LOOK", first_look)
        kept = cuts.keep(s, top_k, top_p, 0.0)
    assert sorted(expected) == (list(range(VOCABULARY)) if kept is None else kept.tolist())


def test_equal_logits_at_temperature_zero_go_to_the_lowest_index() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert Sampler(SamplingParameters(), 4).sample(logits, 0) == 1


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    temperature, draws = 0.8, 4000
    sampler = Sampler(SamplingParameters(temperature=temperature, seed=5), 4)
    counts = Counter(sampler.sample(logits, position) for position in range(draws))
    expected = torch.softmax(logits.double() / temperature, 0) * draws
    assert sum((counts[i] - float(expected[i])) ** 2 / float(expected[i]) for i in range(4)) < 20


def test_float64_logits_are_not_rounded() -> None:
    logits = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert Sampler(SamplingParameters(), 2).sample(logits, 0) == 1


def test_half_precision_logits_are_accepted() -> None:
    assert (
        Sampler(SamplingParameters(temperature=1e-3), 3).sample(torch.tensor([0, 9, 1], dtype=torch.bfloat16), 0) == 1
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_logits_are_an_error_and_no_token(temperature: float, bad: float) -> None:
    logits = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(PipelineError, match=r"position 9 .* the model's output"):
        Sampler(SamplingParameters(temperature=temperature), 3).sample(logits, 9)


@pytest.mark.parametrize("vocabulary", [3, 9000])
@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 2}], ids=str)
def test_damaged_logits_of_a_drafter_are_told_as_its_own(law: dict[str, Any], vocabulary: int) -> None:
    logits = torch.zeros(2, vocabulary)
    logits[1, 1] = float("nan")
    with pytest.raises(PipelineError, match=r"position 9 .* the drafter's output"):
        Sampler(SamplingParameters(**law), vocabulary).rank(logits, [8, 9], 2)


def test_the_penalty_counts_a_token_once_and_asks_history_and_path() -> None:
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0), 3)
    history = TokenHistory(3)
    history.add([0, 0])
    logits = torch.tensor([4.0, 2.1, 1.9])
    assert sampler.needs_history
    assert sampler.sample(logits, 0, history) == 1  # 2.0, 2.1, 1.9
    assert sampler.sample(logits, 0, history, [1]) == 0  # 2.0, 1.05, 1.9
    assert sampler.sample(torch.tensor([-1.0, -1.5, -9.0]), 0, history) == 1  # -2.0, -1.5
    assert logits.tolist() == pytest.approx([4.0, 2.1, 1.9])


def test_ranking_at_temperature_zero_gives_log_probabilities_best_first() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ranked = Sampler(SamplingParameters(), 50).rank(logits, [4, 5, 6], 4)
    expected = torch.log_softmax(SHARPNESS * logits, dim=1).topk(4)
    assert [[token for token, _ in row] for row in ranked] == expected.indices.tolist()
    assert torch.tensor([[score for _, score in row] for row in ranked]) == pytest.approx(expected.values, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sharper_scores_are_further_apart_in_the_same_order(temperature: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    sampling = SamplingParameters(temperature=temperature, seed=3)
    plain, sharp = (Sampler(sampling, 50, sharpness=factor).rank(logits, [4, 5, 6], 4) for factor in (1.0, 3.0))
    for row, sharper in zip(plain, sharp, strict=True):
        assert [token for token, _ in row] == [token for token, _ in sharper]
        assert sharper[0][1] - sharper[3][1] == pytest.approx(3 * (row[0][1] - row[3][1]))


def test_ranking_under_noise_scores_are_log_probabilities_over_what_is_kept() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    ranked = Sampler(SamplingParameters(temperature=0.9, top_k=6, seed=3), 50).rank(logits, [7, 8], 50)
    for row in ranked:
        assert len(row) == 6
        assert sum(np.exp(score) for _, score in row) == pytest.approx(1.0)
        assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)


def test_ranking_at_a_tiny_temperature_is_ranking_at_temperature_zero() -> None:
    logits = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    ranked = Sampler(SamplingParameters(temperature=1e-45, seed=5), 64).rank(logits, [1, 2], 3)
    expected = Sampler(SamplingParameters(), 64).rank(logits, [1, 2], 3)
    for row, wanted in zip(ranked, expected, strict=True):
        assert [token for token, _ in row] == [token for token, _ in wanted]
        assert [score for _, score in row] == pytest.approx([score for _, score in wanted], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
def test_scores_come_true_as_often_as_they_say_where_logits_are_off_by_gumbel_noise(temperature: float) -> None:
    rows, vocabulary = 4000, 24
    dice = np.random.default_rng(0)
    draft = dice.normal(0.0, 2.0, (rows, vocabulary))
    target = draft + dice.gumbel(0.0, 1.0 / SHARPNESS, (rows, vocabulary))
    sampler = Sampler(SamplingParameters(temperature=temperature, seed=1), vocabulary)
    positions = range(rows)
    ranked = sampler.rank(torch.from_numpy(draft), positions, 2)
    drawn = [sampler.sample(row, position) for row, position in zip(torch.from_numpy(target), positions, strict=True)]
    for rank in range(2):
        said = np.mean([np.exp(row[rank][1]) for row in ranked])
        came = np.mean([row[rank][0] == token for row, token in zip(ranked, drawn, strict=True)])
        assert came == pytest.approx(said, abs=0.025)  # three standard errors


@pytest.mark.parametrize("vocabulary", [300, 9000])
def test_ranking_knows_the_noise_of_each_position(vocabulary: int) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 4
    sampler = Sampler(SamplingParameters(temperature=1.0, seed=9), vocabulary)
    rows = logits.expand(100, -1)
    ranked = sampler.rank(rows, range(100), 1)
    assert [row[0][0] for row in ranked] == [sampler.sample(logits[0], position) for position in range(100)]
    assert len({row[0][0] for row in ranked}) > 1


def test_an_explanation_names_the_runner_up_and_the_gap() -> None:
    found = Sampler(SamplingParameters(), 4).explain(torch.tensor([1.0, 3.0, 2.99995, 2.0]), 0)
    assert (found.token, found.runner_up) == (1, 2)
    assert found.gap == pytest.approx(5e-5, rel=0.01)
    assert found.is_tie


@pytest.mark.parametrize(
    ("parameters", "logits"),
    [
        (SamplingParameters(temperature=1.0, top_k=2), [0.0, -1.0, -1.00001, -9.0]),
        (SamplingParameters(temperature=1.0, top_p=0.7310586), [0.0, -1.0, -40.0, -41.0]),
        (SamplingParameters(temperature=1.0, min_p=0.5), [0.0, -0.693148, -9.0, -9.0]),
        (SamplingParameters(temperature=0.02, top_k=2), [0.0, -0.02, -0.02001, -9.0]),
        (SamplingParameters(temperature=0.02, top_p=0.7309), [0.0, -0.02, -0.8, -0.82]),
        (SamplingParameters(temperature=0.02, min_p=0.5), [0.0, -0.01388, -9.0, -9.0]),
    ],
    ids=["top-k", "top-p", "min-p", "cold top-k", "cold top-p", "cold min-p"],
)
def test_a_token_at_the_edge_of_a_cut_shows_as_a_tie_when_it_matters(
    parameters: SamplingParameters, logits: list[float]
) -> None:
    tensor = torch.tensor(logits, dtype=torch.float64)
    nudged = tensor + torch.tensor([0.0, 4e-5, 0.0, 0.0], dtype=torch.float64)
    lowered = tensor - torch.tensor([0.0, 4e-5, 0.0, 0.0], dtype=torch.float64)
    changed = 0
    for seed in range(200):
        sampler = Sampler(SamplingParameters(**{**vars_of(parameters), "seed": seed}), 4)
        tokens = {sampler.sample(logits, 0) for logits in (tensor, nudged, lowered)}
        found = sampler.explain(tensor, 0)
        if len(tokens) > 1:
            changed += 1
            assert found.is_tie
    assert changed > 0


def vars_of(parameters: SamplingParameters) -> dict[str, float]:
    return {name: getattr(parameters, name) for name in SamplingParameters.__slots__}


def test_a_clear_choice_is_no_tie() -> None:
    found = Sampler(SamplingParameters(temperature=0.5, top_p=0.9, top_k=3), 4).explain(
        torch.tensor([20.0, 0.0, -1.0, -2.0]), 0
    )
    assert found.token == 0
    assert not found.is_tie


def test_drawn_seeds_are_valid_and_differ() -> None:
    seeds = {draw_seed() for _ in range(100)}
    assert len(seeds) == 100
    for seed in seeds:
        SamplingParameters(seed=seed).validate()


@pytest.mark.parametrize(
    ("vocabulary", "count"), [(50, 50), (4096, 7), (32_000, 13), (32_001, 13), (32_000, 400), (128_000, 1024)]
)
def test_the_topmost_of_a_vocabulary_are_found_through_the_best_of_its_blocks(vocabulary: int, count: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary + count)
    rows = torch.randn(3, vocabulary, generator=generator)
    rows[1] = rows[1].mul(4).round()  # many equal ones
    rows[2] = -math.inf
    rows[2, -count:] = torch.randn(count, generator=generator)  # all of them side by side
    values, indices = topmost(rows, count)
    assert torch.equal(values, rows.topk(count).values)
    assert torch.equal(rows.gather(1, indices), values)
    assert all(len(set(row)) == count for row in indices.tolist())
