"""Claims about training: resumable, on time, and its product loads anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowspec.demo.architecture import draft_from, new_model, target_config
from flowspec.demo.data import Cursor, TokenFile, WindowStream, fixed_windows
from flowspec.demo.loop import Plan, Trainer
from flowspec.demo.losses import Unlikelihood, distillation_loss, logits_of, next_token_loss, settling_loss
from flowspec.demo.optimizer import orthogonalised
from flowspec.demo.sampling import complete, repeated_tokens
from flowspec.demo.schedule import Schedule
from flowspec.demo.storage import export
from flowspec.demo.tokenizer import train_tokenizer

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture
def files() -> list[TokenFile]:
    random = np.random.default_rng(0)
    return [TokenFile(random.integers(2, 300, 97).astype(np.int32), is_test=bool(index % 2)) for index in range(8)]


def trainer(folder: Path, files: list[TokenFile], steps: int) -> Trainer:
    model = new_model(target_config(**TINY), seed=0)
    plan = Plan(Schedule.for_minutes(5, steps), folder / "target.pt", batch=2, length=16, long_length=32)
    return Trainer(model, next_token_loss(model), WindowStream(files), plan)


def test_a_two_step_run_resumes_from_its_checkpoint(tmp_path: Path, files: list[TokenFile]) -> None:
    validation = fixed_windows(files, 16, 4)
    totals = trainer(tmp_path, files, 2).run(validation)
    assert (totals.steps, totals.tokens) == (2, 64)
    resumed = trainer(tmp_path, files, 5)
    assert resumed.totals.steps == 2
    assert resumed.run(validation).steps == 5


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, files: list[TokenFile]) -> None:
    validation = fixed_windows(files, 16, 4)
    whole = trainer(tmp_path / "whole", files, 4)
    whole.run(validation)
    trainer(tmp_path / "parts", files, 2).run(validation)
    resumed = trainer(tmp_path / "parts", files, 4)
    resumed.run(validation)
    assert resumed.evaluate(validation) == pytest.approx(whole.evaluate(validation), abs=1e-3)


def test_an_exported_folder_loads_with_the_auto_classes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["def f():\n    return 1\n"] * 3, vocab_size=300)
    model = new_model(target_config(**TINY), seed=0)
    export(model, tokenizer, tmp_path / "model", {"steps": 0})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "model")("def g", return_tensors="pt").input_ids
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs).logits.float(), model(inputs).logits, atol=0.02, rtol=0.05)


def test_an_export_leaves_no_scratch_behind(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["x = 1\n"], vocab_size=300)
    export(new_model(target_config(**TINY), seed=0), tokenizer, tmp_path / "model", {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_distillation_brings_the_draft_closer_to_the_target(tmp_path: Path, files: list[TokenFile]) -> None:
    target = new_model(target_config(**TINY), seed=0).requires_grad_(False)
    draft = draft_from(target, seed=1)
    torch.nn.init.normal_(draft.lm_head.weight)
    plan = Plan(Schedule.for_minutes(5, 30), tmp_path / "draft.pt", batch=2, length=16, long_length=32)
    training = Trainer(draft, distillation_loss(draft, target), WindowStream(files), plan)
    validation = fixed_windows(files, 16, 4)
    before = training.evaluate(validation)
    training.run(validation)
    assert training.evaluate(validation) < before


def test_the_order_of_windows_follows_from_seed_and_cursor(files: list[TokenFile]) -> None:
    stream = WindowStream(files, seed=3)
    batches = [stream.next_batch(4, 16) for _ in range(20)]
    assert stream.cursor.epoch > 0
    again = WindowStream(files, seed=3, cursor=Cursor(0, 4))
    torch.testing.assert_close(again.next_batch(4, 16), batches[1])


def test_a_corpus_smaller_than_a_batch_is_refused(files: list[TokenFile]) -> None:
    with pytest.raises(ValueError, match="a batch takes 1000"):
        WindowStream(files).next_batch(1000, 16)


def test_the_rate_reaches_zero_at_the_deadline_however_many_steps_there_were() -> None:
    schedule = Schedule(start=1000.0, deadline=2000.0)
    assert schedule.factor(500, 1500.0) == 1.0
    assert schedule.factor(500, 1900.0) == pytest.approx(0.25)
    assert schedule.factor(7, 2000.0) == 0.0
    assert schedule.is_over(7, 2000.0)


def test_a_run_ends_at_its_last_step_before_the_deadline() -> None:
    assert Schedule(0.0, 100.0, max_steps=3).is_over(3, 1.0)
    assert not Schedule(0.0, 100.0, max_steps=3).is_over(2, 1.0)


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (4, 9)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices, steps=10))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_token_is_repeated_when_it_ends_a_run_that_occurred_before() -> None:
    rows = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6, 7], [5, 5, 5, 5, 5, 5, 5]])
    assert repeated_tokens(rows, 3).int().tolist() == [[0, 0, 0, 0, 0, 1, 1], [0] * 7, [0, 0, 0, 1, 1, 1, 1]]


def test_settling_adds_the_unlikelihood_of_the_repeated_tokens() -> None:
    model = new_model(target_config(**TINY), seed=0)
    model.lm_head.weight.data.mul_(30.0)
    windows = torch.randint(2, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    how = Unlikelihood(prefix=8, count=48, size=4, weight=2.0, sampled=(0.0,))
    rows = torch.cat([windows[:, :8], complete(model, windows[:, :8], 48, 0.0)], dim=1)
    repeated = repeated_tokens(rows, 4)[:, 8:]
    assert repeated.float().mean() > 0.5
    with torch.no_grad():
        chances = logits_of(model, rows[:, :-1])[:, 7:].double().softmax(-1).gather(-1, rows[:, 8:, None]).squeeze(-1)
    wanted = 2.0 * float((-torch.log1p(-chances) * repeated).mean())
    assert wanted > 0.1
    added = settling_loss(model, how)(windows) - next_token_loss(model)(windows)
    assert float(added.detach()) == pytest.approx(wanted, rel=0.02)
