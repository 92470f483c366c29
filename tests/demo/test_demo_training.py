"""Claims about making the demo's models: resumable, and their products load anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowspec.demo.corpus import Source, split_of
from flowspec.drafting.head_files import load_head
from flowspec.model.weights import Checkpoint
from flowspec.training.demo import train
from flowspec.training.demo.architecture import new_model, target_config
from flowspec.training.demo.losses import Unlikelihood, logits_of, next_token_loss, settling_loss
from flowspec.training.demo.shipped import encode_sources, export
from flowspec.training.demo.tokenizer import train_tokenizer
from flowspec.training.documents import is_heldout
from flowspec.training.sampling import complete, repeated_tokens

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    for index in range(60):
        lines = [f"def function_{index}_{number}(a, b):\n    return a + {number} * b\n" for number in range(20)]
        (folder / f"module{index}.py").write_text("\n".join(lines))
    return folder


def make(*arguments: str) -> None:
    train.main(list(arguments))


def test_a_target_and_its_heads_are_made_from_a_library(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "target_config", lambda **changes: target_config(**{**TINY, **changes}))
    shipped = {name: replace(draft, folder=tmp_path / "shipped" / name) for name, draft in train.DRAFTS.items()}
    monkeypatch.setattr(train, "DRAFTS", shipped)
    target = tmp_path / "model"
    places = ["--target", str(target), "--work", str(tmp_path / "work"), "--corpus", str(library)]
    training = [*places, "--batch", "2", "--length", "32", "--long-length", "32", "--device", "cpu"]
    make("tokenizer", *places)
    make("target", *training, "--no-compile", "--steps", "3")
    make("settle", *training, "--no-compile", "--steps", "1")
    make("drafts", *training, "--steps", "2", "--positions", "4")
    checkpoint = Checkpoint(target)
    heads = {name: load_head(tmp_path / "shipped" / name, checkpoint) for name in ("eagle", "eagle3", "eagle3-deep")}
    assert {name: (head.kind, head.layer_count) for name, head in heads.items()} == {
        "eagle": ("eagle", 1),
        "eagle3": ("eagle3", 1),
        "eagle3-deep": ("eagle3", 3),
    }
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "shipped" / "causal-lm").config.num_hidden_layers == 1
    assert not list((tmp_path / "shipped").rglob("*.pt"))
    assert json.loads((target / "training.json").read_text())["steps"] == 4


def test_a_parts_defaults_are_its_own() -> None:
    parser = train._parser()
    told = {part: vars(parser.parse_args([part])) for part in ("target", "settle", "drafts")}
    names = ("batch", "long_length", "peak")
    assert [told["target"][name] for name in names] == [16, 2048, 1.0]
    assert [told["settle"][name] for name in names] == [16, 512, 0.2]
    assert [told["drafts"][name] for name in names] == [8, 1024, 1.0]


def test_what_is_held_out_of_the_corpus_is_held_out_of_drafts_trained_on_its_files() -> None:
    for name in (f"folder/module{index}.py" for index in range(500)):
        assert is_heldout(name) == (split_of(name) != "train")


def test_the_corpus_is_written_out_as_the_files_it_is(tmp_path: Path, library: Path) -> None:
    make("corpus", "--corpus", str(library), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in library.iterdir()}


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


def test_test_files_join_every_other_epoch() -> None:
    tokenizer = train_tokenizer(["x = 1\n"], vocab_size=300)
    sources = [Source("a.py", "x = 1\n", "train"), Source("test/b.py", "x = 2\n", "train")]
    assert [file.every for file in encode_sources(tokenizer, sources, "train")] == [1, 2]


def test_a_token_is_repeated_when_it_ends_a_run_that_occurred_before() -> None:
    rows = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6, 7], [5, 5, 5, 5, 5, 5, 5]])
    assert repeated_tokens(rows, 3).int().tolist() == [[0, 0, 0, 0, 0, 1, 1], [0] * 7, [0, 0, 0, 1, 1, 1, 1]]


def test_settling_adds_the_unlikelihood_of_the_repeated_tokens() -> None:
    model = new_model(target_config(**{**TINY, "num_hidden_layers": 2}), seed=0)
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
