"""Heads of the Hugging Face hub whose repository holds pytorch_model.bin and nothing else; the hub is a folder here."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from flowspec.cli.main import main
from flowspec.drafting.head_files import load_head
from flowspec.drafting.plan import kind_in
from flowspec.errors import ModelError
from flowspec.model.hub import resolve_model
from flowspec.model.weights import Checkpoint
from tests.checkpoints import write_checkpoint
from tests.drafting import head_folders as folders

NAME = "someone/EAGLE-head"


@pytest.fixture(params=["eagle", "eagle3"])
def repository(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a repository with a pickled head; what is fetched goes to where the hub's client keeps it."""
    origin, snapshot = tmp_path / "hub", tmp_path / "models--someone--EAGLE-head" / "snapshots" / "abc"
    if request.param == "eagle3":
        folders.write_small(origin)
    else:
        folders.write_head(origin, folders.EAGLE, folders.random_tensors(folders.eagle_shapes()))
    torch.save(load_file(origin / "model.safetensors"), origin / "pytorch_model.bin")
    (origin / "model.safetensors").unlink()

    def fetch(repository: str, file: str, *, revision: str | None = None) -> str:
        if (repository, revision) != (NAME, "abc") or not (origin / file).is_file():
            raise OSError(f"404 Client Error: {file}")
        return str(shutil.copy(origin / file, snapshot))

    def fetch_small(repository: str, **_: object) -> str:
        snapshot.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin / "config.json", snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch_small)
    return origin


def test_the_hint_is_the_command_that_makes_it_load(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Checkpoint(write_checkpoint(tmp_path / "target", tokenizer=False))
    capsys.readouterr()
    for ask in (lambda: load_head(resolve_model(NAME), target), lambda: kind_in(NAME)):
        with pytest.raises(ModelError, match=f"only pytorch_model.bin, .* flowspec convert-head {NAME}"):
            ask()
    with pytest.raises(SystemExit) as ended:
        main(["convert-head", NAME])
    assert ended.value.code == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert load_head(resolve_model(NAME), target).kind == kind_in(NAME)


def test_a_repository_with_no_weights_at_all_says_so(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "pytorch_model.bin").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["convert-head", NAME])
    assert ended.value.code == 3
    assert f"pytorch_model.bin of {NAME} is neither here nor can it be fetched" in capsys.readouterr().err
