"""Claims about how far apart a draft's scores should be: what is measured is what made the errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.drafting.head_files import config_for, new_head
from flowspec.model.weights import Checkpoint
from flowspec.training.heads import HeadStudent
from flowspec.training.sharpness import CANDIDATES, measure_sharpness, surprises
from flowspec.training.target import Target
from tests.checkpoints import write_checkpoint

ROWS, VOCABULARY = 20_000, 40


def test_the_likeliest_sharpness_is_that_of_the_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(ROWS, VOCABULARY, generator=generator)
    errors = -torch.empty(ROWS, VOCABULARY).exponential_(generator=generator).log()
    for sharpness in (0.8, 2.0, 5.0):
        found = surprises(scores, (scores + errors / sharpness).argmax(-1))
        assert CANDIDATES[int(found.argmin())] == pytest.approx(sharpness, rel=0.08)


def test_a_surprise_is_what_the_softmax_says_wherever_the_drawn_token_stands() -> None:
    scores = 3 * torch.randn(7, 500, generator=torch.Generator().manual_seed(1))
    for rank in (0, 3, 300):
        drawn = scores.argsort(-1, descending=True)[:, rank]
        found = surprises(scores, drawn)
        for candidate, surprise in list(zip(CANDIDATES, found, strict=True))[10::20]:
            exact = -(candidate * scores.double()).log_softmax(-1).gather(-1, drawn[:, None]).sum()
            assert float(surprise) == pytest.approx(float(exact), rel=1e-2)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_head_that_knows_nothing_is_not_trusted(reduced: bool, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "llama", layers=4, hidden=32, dtype="float32")
    checkpoint = Checkpoint(path)
    taps = (0, 1, 2)
    tokens = torch.arange(3, checkpoint.vocab_size, 4) if reduced else None
    changes = {} if tokens is None else {"draft_vocab_size": len(tokens)}
    config = config_for("eagle3", checkpoint, taps, **changes)
    target = Target.load(checkpoint, taps, device=torch.device("cpu"), dtype=torch.float32)
    windows = torch.randint(0, checkpoint.vocab_size, (4, 33), generator=torch.Generator().manual_seed(0))
    student = HeadStudent(new_head(config, checkpoint, target_tokens=tokens, spread=0.3), checkpoint, 2)
    asked = [measure_sharpness(student, target, windows, dtype=torch.float32, batch=2) for _ in range(2)]
    assert asked[0] == asked[1] < 1.5
