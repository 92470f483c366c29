"""The check against the whole model: equal, shown tie, difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowspec.model.check import Report, WholeModel, check_generation
from flowspec.model.noise import gumbel
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint

PROMPT = (5, 9, 200, 17)
PLAIN = SamplingParameters()
SAMPLED = SamplingParameters(temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.1, seed=3)


class Fixed(WholeModel):
    """Logits that a test has chosen, the same after every token."""

    def __init__(self, row: list[float]) -> None:
        self._row = torch.tensor(row, dtype=torch.float64)

    def logits(self, tokens: object, count: int) -> torch.Tensor:
        return self._row.expand(count, -1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    torch.set_num_threads(1)
    return WholeModel(str(write_checkpoint(tmp_path_factory.mktemp("model"), layers=2)), "float64")


def continued(whole: WholeModel, sampling: SamplingParameters, count: int) -> list[int]:
    """What the law draws, a token at a time."""
    output: list[int] = []
    history = TokenHistory(352)
    history.add(PROMPT)
    sampler = Sampler(sampling, 352)
    for index in range(count):
        logits = whole.logits([*PROMPT, *output], 1)[0]
        output.append(sampler.sample(logits, len(PROMPT) + index, history))
        history.add(output[-1:])
    return output


@pytest.mark.parametrize("sampling", [PLAIN, SAMPLED], ids=["greedy", "sampled"])
def test_what_the_model_writes_alone_passes(whole: WholeModel, sampling: SamplingParameters) -> None:
    report = check_generation(whole, PROMPT, continued(whole, sampling, 12), sampling)
    assert (report.tokens, report.equal, report.ties, report.differences) == (12, 12, (), ())


@pytest.mark.parametrize("sampling", [PLAIN, SAMPLED], ids=["greedy", "sampled"])
def test_another_token_is_a_difference_and_is_named(whole: WholeModel, sampling: SamplingParameters) -> None:
    output = continued(whole, sampling, 6)
    right, output[3] = output[3], (output[3] + 1) % 352
    report = check_generation(whole, PROMPT, output, sampling)
    first = report.differences[0]
    assert (first.index, first.given, first.expected) == (3, output[3], right)
    assert "DIFFERENCE at output token 3" in report.text()
    assert report.as_values()["differences"][0]["index"] == 3


def test_a_close_second_is_a_tie_and_a_third_is_not() -> None:
    tied = Fixed([0.0, 5.0, 5.0 - 1e-6, 5.0 - 2e-6, 1.0])
    assert check_generation(tied, (0,), [1], PLAIN).equal == 1
    assert len(check_generation(tied, (0,), [2], PLAIN).ties) == 1
    assert len(check_generation(tied, (0,), [4], PLAIN).differences) == 1
    clear = Fixed([0.0, 5.0, 4.9])
    assert len(check_generation(clear, (0,), [2], PLAIN).differences) == 1


def test_a_token_just_outside_a_cut_is_a_tie() -> None:
    cut = SamplingParameters(temperature=1.0, top_k=1, seed=1)
    assert len(check_generation(Fixed([0.0, 5.0, 5.0 - 1e-6]), (0,), [2], cut).ties) == 1
    assert len(check_generation(Fixed([0.0, 5.0, 4.0]), (0,), [2], cut).differences) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(("moved", "shown"), [(2e-6, True), (1e-3, False)])
def test_what_rounding_does_to_logits_is_a_tie_at_every_temperature_and_what_it_cannot_do_is_none(
    temperature: float, moved: float, shown: bool
) -> None:
    sampling = SamplingParameters(temperature=temperature, seed=5)
    found = Report(0, (), ())
    for position in range(1, 100):
        noise = gumbel(5, position, np.arange(2))
        tied = 20.0 - temperature * float(noise[1] - noise[0])
        # The pipeline's logits favour the one, those of the model alone the other.
        given = Sampler(sampling, 2).sample(torch.tensor([20.0 + moved, tied], dtype=torch.float64), position)
        report = check_generation(Fixed([20.0, tied + moved]), (0,) * position, [given], sampling)
        found = Report(found.tokens + 1, (*found.ties, *report.ties), (*found.differences, *report.differences))
    assert found.equal == 0
    assert not (found.differences if shown else found.ties)


def test_tokens_of_another_seed_are_no_ties_at_a_low_temperature() -> None:
    rows = Fixed([1.0, 1.01, 1.02, 1.03])
    drawn = [
        Sampler(SamplingParameters(temperature=0.05, seed=1), 4).sample(rows.logits((), 1)[0], at)
        for at in range(1, 80)
    ]
    report = check_generation(rows, (0,), drawn, SamplingParameters(temperature=0.05, seed=2))
    assert len(report.differences) > 20
    assert len(report.ties) < 3


def test_a_half_precision_model_has_its_head_in_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, layers=2, tied=True)
    found = WholeModel(str(folder), "bfloat16").logits(PROMPT, 3)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (3, 352))
