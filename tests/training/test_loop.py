"""Claims about the training loop: resumable, on time, and honest about what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from flowspec.errors import ConfigurationError, FlowspecError
from flowspec.output import unwritable
from flowspec.training.loop import Plan, Trainer
from flowspec.training.optimizer import Muon, Optimizers, orthogonalised
from flowspec.training.progress import Progress, described
from flowspec.training.schedule import Schedule
from flowspec.training.storage import load_checkpoint, replacing, save_checkpoint
from flowspec.training.windows import Cursor, TokenFile, WindowStream, fixed_windows
from tests.disks import no_file_over


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []
        self.said: list[str] = []

    def step(self, progress: Progress) -> None:
        self.steps.append(progress)

    def say(self, text: str) -> None:
        self.said.append(text)


class Bigrams(torch.nn.Module):
    """The smallest language model there is: a matrix of what follows what, and a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = torch.nn.Embedding(30, 8)
        self.mix = torch.nn.Linear(8, 8)
        self.lm_head = torch.nn.Linear(8, 30, bias=False)

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(self.mix(self.embed_tokens(windows[:, :-1])))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@pytest.fixture
def files() -> list[TokenFile]:
    random = np.random.default_rng(0)
    return [TokenFile(random.integers(2, 30, 97).astype(np.int32), 1 + index % 2) for index in range(8)]


def trainer(folder: Path, files: list[TokenFile], steps: int, **changes: Any) -> tuple[Trainer, Bigrams]:
    model = Bigrams()
    settings, pace = changes.pop("settings", {}), changes.pop("pace", {})
    plan = Plan(
        Schedule(steps=steps, warmup_steps=1, cooldown=1e-9),
        folder / "t.pt",
        batch=2,
        length=16,
        long_share=0.0,
        **changes,
    )
    made = Trainer(model, model.loss, WindowStream(files), plan, Heard(), settings=settings, pace=pace)
    return made, model


def test_a_two_step_run_resumes_from_its_checkpoint(tmp_path: Path, files: list[TokenFile]) -> None:
    first, _ = trainer(tmp_path, files, 2)
    assert first.run()
    assert (first.totals.steps, first.totals.tokens) == (2, 64)
    resumed, _ = trainer(tmp_path, files, 5)
    assert resumed.totals.steps == 2
    resumed.run()
    assert resumed.totals.steps == 5


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, files: list[TokenFile]) -> None:
    whole, straight = trainer(tmp_path / "whole", files, 6)
    whole.run()
    answers = iter([False, False, True])
    stopped, _ = trainer(tmp_path / "parts", files, 6)
    assert not stopped.run(lambda: next(answers))
    assert stopped.totals.steps == 2
    resumed, parts = trainer(tmp_path / "parts", files, 6)
    assert resumed.run()
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=0, rtol=0)


def test_a_batch_in_parts_gives_the_same_step(tmp_path: Path, files: list[TokenFile]) -> None:
    at_once, one = trainer(tmp_path / "a", files, 3)
    in_parts, other = trainer(tmp_path / "b", files, 3, part=1)
    at_once.run()
    in_parts.run()
    torch.testing.assert_close(one.lm_head.weight, other.lm_head.weight, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, files: list[TokenFile]) -> None:
    trainer(tmp_path, files, 1, settings={"kind": "eagle"})[0].run()
    with pytest.raises(ConfigurationError, match="made with kind eagle, and now it is eagle3"):
        trainer(tmp_path, files, 2, settings={"kind": "eagle3"})


def test_a_damaged_checkpoint_says_so(tmp_path: Path, files: list[TokenFile]) -> None:
    (tmp_path / "t.pt").write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        trainer(tmp_path, files, 2)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, files: list[TokenFile]) -> None:
    model = Bigrams()
    plan = Plan(Schedule(steps=3), tmp_path / "t.pt", batch=2, length=16)
    made = Trainer(model, lambda windows: model.loss(windows) * torch.nan, WindowStream(files), plan, Heard())
    with pytest.raises(FlowspecError, match="no number any more"):
        made.run()


def test_a_full_disk_is_told_and_leaves_what_was_there_and_no_part(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "t.pt", {"steps": 1})
    with no_file_over(10_000), pytest.raises(ConfigurationError, match=r"t\.pt cannot be written: File too large"):
        save_checkpoint(tmp_path / "t.pt", {"weights": torch.zeros(100_000)})
    assert [file.name for file in tmp_path.iterdir()] == ["t.pt"]
    assert load_checkpoint(tmp_path / "t.pt") == {"steps": 1}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662"),
        RuntimeError("basic_ios::clear: iostream error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
    ],
)
def test_whatever_a_writer_says_of_a_full_disk_is_no_defect(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written") as told, unwritable(tmp_path):
        raise error
    assert "Error while" not in told.value.message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too large"), ConfigurationError("it is"), ValueError("no")])
def test_what_is_not_the_disks_fault_is_not_told_as_such(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as told, unwritable(tmp_path):
        raise error
    assert told.value is error


def test_a_disk_that_is_full_from_some_time_on_does_not_end_the_training(
    tmp_path: Path, files: list[TokenFile]
) -> None:
    made, _ = trainer(tmp_path, files, 3, checkpoint_seconds=-1.0)
    with no_file_over(2_000):
        assert made.run()
    assert made.totals.steps == 3
    assert made.unsaved is not None
    assert "File too large" in made.unsaved
    assert not list(tmp_path.iterdir())


def test_a_failed_checkpoint_in_between_is_made_up_for(
    tmp_path: Path, files: list[TokenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = trainer(tmp_path, files, 3, checkpoint_seconds=-1.0)
    save, calls = torch.save, []

    def sometimes(state: object, file: object) -> None:
        calls.append(file)
        if len(calls) < 3:
            raise OSError(28, "No space left on device")
        save(state, file)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", sometimes)
    assert made.run()
    assert made.unsaved is None
    assert load_checkpoint(tmp_path / "t.pt") is not None


def test_what_a_killed_process_was_writing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "t.part").write_text("half")
    save_checkpoint(tmp_path / "t.pt", {})
    (tmp_path / "draft.part").mkdir()
    (tmp_path / "draft.part" / "model.safetensors").write_text("half")
    with replacing(tmp_path) as scratch:
        (scratch / "config.json").write_text("{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "t.pt"]


def test_how_a_training_went_on_differently_is_kept_with_the_checkpoint(tmp_path: Path, files: list[TokenFile]) -> None:
    trainer(tmp_path, files, 2, pace={"rate": 1.0})[0].run()
    trainer(tmp_path, files, 3, pace={"rate": 1.0})[0].run()
    trainer(tmp_path, files, 5, pace={"rate": 0.5})[0].run()
    idle, _ = trainer(tmp_path, files, 5, pace={"rate": 0.1})
    assert idle.run()
    assert idle.stretches == [(0, {"rate": 1.0}), (3, {"rate": 0.5})]


def test_a_folder_is_replaced_only_when_all_of_it_was_written(tmp_path: Path) -> None:
    def write(text: str, fail: bool) -> None:
        with replacing(tmp_path / "out") as scratch:
            (scratch / "config.json").write_text(text)
            if fail:
                raise ValueError("broken off")

    write("old", False)
    with pytest.raises(ValueError, match="broken off"):
        write("new", True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_order_of_windows_follows_from_seed_and_cursor(files: list[TokenFile]) -> None:
    stream = WindowStream(files, seed=3)
    batches = [stream.next_batch(4, 16) for _ in range(20)]
    assert stream.cursor.epoch > 0
    again = WindowStream(files, seed=3, cursor=Cursor(0, 4))
    torch.testing.assert_close(again.next_batch(4, 16), batches[1])


def test_a_file_of_every_other_epoch_is_absent_from_the_ones_between() -> None:
    both = [TokenFile(np.full(40, token, np.int32), 2) for token in (5, 6)]
    stream = WindowStream([TokenFile(np.full(40, 4, np.int32)), *both])
    seen = []
    for epoch in range(2):
        stream.cursor = Cursor(epoch, 0)
        seen.append(set(stream.next_batch(8, 8).unique().tolist()))
    assert seen == [{4, 5}, {4, 6}]


def test_a_corpus_smaller_than_a_batch_is_refused(files: list[TokenFile]) -> None:
    with pytest.raises(ValueError, match="a batch takes 1000"):
        WindowStream(files).next_batch(1000, 16)
    with pytest.raises(ValueError, match="too few for one window"):
        fixed_windows(files, 10_000, 3)


def test_the_rate_reaches_zero_at_the_end_however_many_steps_there_were() -> None:
    schedule = Schedule(minutes=10)
    assert schedule.factor(500, 300) == 1.0
    assert schedule.factor(500, 540) == pytest.approx(0.25)
    assert schedule.factor(7, 600) == 0.0
    assert schedule.is_over(7, 600)


def test_a_training_ends_at_its_last_step_or_its_last_minute_whichever_comes_first() -> None:
    schedule = Schedule(minutes=10, steps=100)
    assert schedule.is_over(100, 1)
    assert schedule.is_over(1, 600)
    assert schedule.progress(50, 60) == 0.5
    assert not schedule.is_over(99, 599)


def test_few_slow_steps_still_reach_the_full_rate() -> None:
    assert Schedule(minutes=10).factor(3, 60) == 1.0
    assert Schedule(steps=1000).factor(0, 0.0) < 0.02


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (4, 9)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices, steps=10))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_muon_steps_matrices_and_adam_tables_and_what_is_frozen_stays() -> None:
    model = Bigrams()
    model.embed_tokens.requires_grad_(False)
    optimizers = Optimizers(model)
    kinds = [type(part).__name__ for part, _ in optimizers._parts]
    assert kinds == [Muon.__name__, "AdamW"]
    before = model.embed_tokens.weight.clone()
    model.loss(torch.arange(20).view(2, 10)).backward()
    optimizers.step(1.0)
    assert torch.equal(model.embed_tokens.weight, before)


def test_a_progress_line_fits_a_terminal() -> None:
    line = described(Progress(123_456, 999_999_999, 12.3456, 123_456.7, 1.0, 0.5, 36_000))
    assert len(line) <= 100
