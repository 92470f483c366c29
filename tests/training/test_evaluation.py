"""Claims about a draft's figures on held-out text: they are those of the loss, and of drawing with shared noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.drafting.head_files import config_for, new_head
from flowspec.model.weights import Checkpoint
from flowspec.training.distillation import Distillation
from flowspec.training.evaluation import agreement, described
from flowspec.training.guesses import guesses_of
from flowspec.training.heads import HeadStudent
from flowspec.training.target import Target
from tests.checkpoints import write_checkpoint

STEPS = 2


@pytest.mark.parametrize("reduced", [False, True])
def test_the_figures_are_those_of_the_loss_and_of_drawing(reduced: bool, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "llama", layers=4, hidden=32, dtype="float32")
    checkpoint, exact = Checkpoint(path), torch.float32
    tokens = torch.arange(3, checkpoint.vocab_size, 2) if reduced else None
    changes = {} if tokens is None else {"draft_vocab_size": len(tokens)}
    config = config_for("eagle3", checkpoint, (0, 1, 2), **changes)
    target = Target.load(checkpoint, (0, 1, 2), device=torch.device("cpu"), dtype=exact)
    student = HeadStudent(new_head(config, checkpoint, target_tokens=tokens, spread=0.3), checkpoint, STEPS)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, checkpoint.vocab_size, (4, 33), generator=generator)
    with torch.no_grad():
        found = agreement(student, target, windows, dtype=exact, batch=2)
        loss = [Distillation(student, target, dtype=exact).parts(part)[1] for part in windows.split(2)]
        drawn = torch.zeros(STEPS)
        rows = torch.zeros(STEPS)
        listed = torch.arange(checkpoint.vocab_size) if tokens is None else tokens
        for each in guesses_of(student, target, windows, dtype=exact, batch=4):
            rows += each.counted.sum(-1)
            for _ in range(400):
                noise = -torch.empty(each.wanted.shape).exponential_(generator=generator).log()
                wanted = (each.wanted + noise)[:, listed].argmax(-1)
                guessed = (each.guessed + noise[:, listed]).argmax(-1)
                covered = each.wanted.softmax(-1)[:, listed].sum(-1)
                drawn += ((wanted == guessed) * covered * each.counted).sum(-1) / 400
    assert [step.divergence for step in found] == pytest.approx(torch.stack(loss).mean(0).tolist(), rel=1e-3)
    assert [step.alike for step in found] == pytest.approx((drawn / rows).tolist(), abs=0.01)
    assert f"drawn alike {100 * found[0].alike:.1f}" in described(found)
