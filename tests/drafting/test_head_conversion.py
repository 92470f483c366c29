"""`flowspec convert-head`: pickled tensors become safetensors, and nothing else that is pickled is ever run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.cli.main import main
from flowspec.drafting.head_files import load_head
from flowspec.model.weights import Checkpoint
from tests.checkpoints import write_checkpoint
from tests.disks import no_file_over
from tests.drafting import head_folders as folders


def run_main(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["convert-head", str(folder)])
    written = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, written.out, written.err


def pickled(folder: Path) -> dict[str, torch.Tensor]:
    """A folder with pytorch_model.bin alone: one tensor transposed, two in one memory, as training leaves them."""
    tensors = folders.random_tensors(folders.eagle_shapes())
    shared = torch.stack((tensors["fc.bias"], tensors["layers.0.post_attention_layernorm.weight"]))
    tensors["fc.bias"], tensors["layers.0.post_attention_layernorm.weight"] = shared
    tensors["fc.weight"] = tensors["fc.weight"].t().contiguous().t()
    folders.write_head(folder, folders.EAGLE, tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def test_a_converted_head_has_the_same_tensors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = Checkpoint(write_checkpoint(tmp_path / "target", tokenizer=False))
    tensors = pickled(tmp_path / "head")
    capsys.readouterr()
    code, out, err = run_main(capsys, tmp_path / "head")
    assert (code, err) == (0, "")
    assert str(tmp_path / "head" / "model.safetensors") in out
    assert f"{len(tensors)} tensors" in out
    assert "an EAGLE-1/2 head" in out
    head = load_head(tmp_path / "head", target, kind="eagle", dtype="float64")
    for name, value in tensors.items():
        assert torch.equal(head.state_dict()[name], value)
    code, _, err = run_main(capsys, tmp_path / "head")
    assert code == 3
    assert "there already" in err


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("boom",)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"fc.weight": torch.zeros(2), "bomb": Bomb()}, "holds more than tensors"),
        ({"fc.weight": torch.zeros(2), "step": 3}, "'step' is no tensor but a int"),
        ([torch.zeros(2)], "holds no tensors by name"),
        ({"fc.weight": torch.eye(3).to_sparse()}, "fc.weight is no dense tensor of plain numbers (torch.sparse_coo"),
        ({"fc.weight": torch.zeros(2, dtype=torch.complex128)}, "fc.weight is no dense tensor of plain numbers"),
        ({"fc.weight": torch.zeros(2, device="meta")}, "fc.weight is no dense tensor of plain numbers"),
    ],
)
def test_what_is_no_tensor_is_refused_and_not_run(
    content: object, part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    code, out, err = run_main(capsys, tmp_path)
    assert code == 3
    assert part in err
    assert out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_damaged_or_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run_main(capsys, tmp_path)
    assert code == 3
    assert "has no pytorch_model.bin" in err
    pickled(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = run_main(capsys, tmp_path)
    assert code == 3
    assert str(file) in err


def test_a_disk_that_does_not_take_the_result_is_told_and_left_as_it_was(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pickled(tmp_path)
    with no_file_over(1000):
        code, out, err = run_main(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'model.safetensors'} cannot be written: File too large" in err
    assert not list(tmp_path.glob("model*"))
    assert not list(tmp_path.glob(".*"))
