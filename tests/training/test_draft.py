"""Claims about training a draft from end to end: it learns, resumes, loads, and refuses what cannot work."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from flowspec.cli.main import main
from flowspec.cli.train import _Bar
from flowspec.drafting.head_files import load_head
from flowspec.errors import ConfigurationError, ModelError
from flowspec.model.weights import Checkpoint
from flowspec.training.documents import Document
from flowspec.training.draft import repeats, train_draft
from flowspec.training.heads import frequent_tokens
from flowspec.training.progress import Progress
from flowspec.training.recipe import Recipe
from flowspec.training.windows import TokenFile
from flowspec.wire.messages import FINAL
from tests.checkpoints import EOS_ID, write_checkpoint
from tests.training.test_loop import Heard


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("target"), "llama", layers=6, hidden=32, dtype="float32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    words = ("quick brown fox", "jumps over", "the lazy dog", "and returns", "to the den", "where it sleeps")
    random = np.random.default_rng(0)
    for index in range(40):
        (folder / f"part{index}.txt").write_text(" ".join(random.choice(words, 120)))
    return folder


@pytest.fixture
def recipe(target: Path, text: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        model=str(target),
        kind="eagle",
        data=(text,),
        out=tmp_path / "draft",
        steps=4,
        batch=4,
        length=24,
        long_length=32,
        unroll=3,
        dtype="float32",
        positions=4,
    )


def facts_of(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.out / "training.json").read_text())
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("eagle", {}),
        ("eagle", {"layers": 2, "own_embedding": True, "taps": (5,)}),
        ("eagle3", {}),
        ("eagle3", {"draft_vocab": 100, "taps": (1, 6, FINAL)}),
    ],
)
def test_a_head_learns_and_loads_again(recipe: Recipe, target: Path, kind: str, changes: dict[str, Any]) -> None:
    heard = Heard()
    outcome = train_draft(replace(recipe, kind=kind, steps=40, rate=0.5, **changes), heard)
    assert outcome.finished
    assert heard.steps[-1].loss < 0.95 * heard.steps[0].loss
    facts = facts_of(recipe)
    assert [row["step"] for row in facts["heldout"]] == [0, 1, 2]
    assert facts["acceptance"]["tokens_per_forward"] >= 1.0
    head = load_head(recipe.out, Checkpoint(target))
    assert head.kind == kind
    assert head.config.sharpness == facts["sharpness"] > 0
    assert head.taps == changes.get("taps", (FINAL,) if kind == "eagle" else (2, 3, 3))
    if "draft_vocab" in changes:
        assert head.target_tokens is not None
        assert len(head.target_tokens) == 100
        assert EOS_ID in head.target_tokens
    assert "eagle" in (recipe.out / "README.md").read_text()


@pytest.mark.parametrize("family", ["qwen3", "mistral", "phi3"])
def test_heads_are_trained_for_other_families_too(recipe: Recipe, tmp_path: Path, family: str) -> None:
    other = write_checkpoint(tmp_path / family, family, layers=5, tied=family == "qwen3", dtype="float32")
    train_draft(replace(recipe, model=str(other), kind="eagle3", steps=2), Heard())
    assert load_head(recipe.out, Checkpoint(other)).kind == "eagle3"


@pytest.mark.parametrize("copied", [False, True])
def test_a_small_language_model_learns_and_loads_again(recipe: Recipe, copied: bool) -> None:
    heard = Heard()
    train_draft(replace(recipe, kind="causal-lm", steps=40, rate=0.3, copy_layers=copied, layers=2), heard)
    assert heard.steps[-1].loss < heard.steps[0].loss
    draft = Checkpoint(recipe.out)
    assert draft.layer_count == 2
    assert draft.tokenizer_hash()
    assert facts_of(recipe)["acceptance"]["tokens_per_forward"] >= 1.0


def test_a_stopped_training_exports_and_resumes_to_the_same_weights(
    recipe: Recipe, target: Path, tmp_path: Path
) -> None:
    whole = replace(recipe, out=tmp_path / "whole")
    train_draft(whole, Heard())
    answers = iter([False, False, True])
    stopped = train_draft(recipe, Heard(), stop=lambda: next(answers))
    assert not stopped.finished
    assert facts_of(recipe)["steps"] == 2
    load_head(recipe.out, Checkpoint(target))
    assert "interrupted" in (recipe.out / "README.md").read_text()
    heard = Heard()
    assert train_draft(recipe, heard).finished
    assert any("resumed at step 2" in said for said in heard.said)
    one, other = (load_head(folder, Checkpoint(target)).state_dict() for folder in (whole.out, recipe.out))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["eagle3", "causal-lm"])
def test_a_draft_learns_to_draw_alike(recipe: Recipe, kind: str) -> None:
    plain, heard = Heard(), Heard()
    train_draft(replace(recipe, kind=kind, steps=1, out=recipe.out.with_name("plain")), plain)
    train_draft(replace(recipe, kind=kind, steps=40, rate=0.5, coupling=2.0), heard)
    assert 0.1 < heard.steps[0].loss - plain.steps[0].loss < 2.0
    assert heard.steps[-1].loss < 0.97 * heard.steps[0].loss
    assert all(0 < row["alike"] < 1 for row in facts_of(recipe)["heldout"])
    assert "2 times what is not drawn alike" in (recipe.out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["eagle3", "causal-lm"])
def test_a_training_begins_with_another_drafts_weights(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    first = replace(recipe, kind=kind)
    train_draft(first, Heard())
    again = replace(first, begin=first.out, out=tmp_path / "again", rate=0.0)
    train_draft(again, Heard())
    before, after = facts_of(first)["heldout"], facts_of(again)["heldout"]
    assert [row["divergence"] for row in after] == pytest.approx([row["divergence"] for row in before], rel=0.02)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_further_layers_of_a_head_begin_with_adding_nothing(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    first = replace(recipe, kind=kind)
    train_draft(first, Heard())
    deeper = replace(first, begin=first.out, layers=3, out=tmp_path / "deeper", rate=0.0)
    train_draft(deeper, Heard())
    before, after = facts_of(first)["heldout"], facts_of(deeper)["heldout"]
    assert [row["divergence"] for row in after] == pytest.approx([row["divergence"] for row in before], rel=0.02)
    assert load_head(deeper.out, Checkpoint(Path(recipe.model))).config.layer_count == 3
    assert facts_of(deeper)["parameters"] > facts_of(first)["parameters"]
    # They take part in the training at once.
    learning = replace(deeper, rate=1.0, out=tmp_path / "learning")
    train_draft(learning, Heard())
    layers = load_head(learning.out, Checkpoint(Path(recipe.model))).stack[1:]
    assert all(layer.self_attn.o_proj.weight.abs().sum() > 0 for layer in layers)
    assert all(layer.mlp.down_proj.weight.abs().sum() > 0 for layer in layers)


@pytest.mark.parametrize("kind", ["eagle3", "causal-lm"])
def test_a_training_does_not_begin_with_a_draft_that_has_more_layers(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    deep = replace(recipe, kind=kind, layers=2)
    train_draft(deep, Heard())
    with pytest.raises(ModelError, match=r"layers\.1\.\S+ has no place here"):
        train_draft(replace(deep, layers=1, begin=recipe.out, out=tmp_path / "again"), Heard())


def test_a_language_model_does_not_begin_with_one_that_has_fewer_layers(recipe: Recipe, tmp_path: Path) -> None:
    first = replace(recipe, kind="causal-lm")
    train_draft(first, Heard())
    with pytest.raises(ModelError, match="another shape"):
        train_draft(replace(first, begin=first.out, layers=2, out=tmp_path / "deeper"), Heard())


def test_the_targets_own_text_is_written_once_and_trained_on(recipe: Recipe) -> None:
    asked = replace(recipe, self_generate=6, prompt_length=8)
    train_draft(asked, Heard())
    assert facts_of(recipe)["sampled_tokens"] == 6 * 24
    again = Heard()
    train_draft(replace(asked, steps=5), again)
    assert any("6 completions by the model itself, from" in said for said in again.said)


def test_the_targets_own_text_is_repeated_until_it_is_the_share_that_was_asked_for() -> None:
    own = [TokenFile(np.zeros(50, dtype=np.int32))] * 2
    assert repeats(own, 900, 0.0) == repeats(own, 900, 0.1) == 1
    assert repeats(own, 900, 0.5) == 9
    assert repeats(own, 300, 0.75) == 9
    assert repeats([], 900, 0.5) == 1


def test_a_checkpoint_with_another_share_of_own_text_is_refused(recipe: Recipe) -> None:
    asked = replace(recipe, self_generate=6, prompt_length=8, own_share=0.5)
    train_draft(asked, Heard())
    assert facts_of(recipe)["sampled_tokens"] == 6 * 24
    with pytest.raises(ConfigurationError, match=r"own text's share 0.5, and now it is 0.2"):
        train_draft(replace(asked, own_share=0.2), Heard())


def test_the_other_texts_of_a_checkpoint_are_noticed(recipe: Recipe) -> None:
    train_draft(recipe, Heard())
    other = [Document("a", "a fox and a dog " * 400, (), False), Document("b", "where it sleeps " * 60, (), True)]
    with pytest.raises(ConfigurationError, match="was made with text"):
        train_draft(recipe, Heard(), documents=other)


def test_a_checkpoint_of_the_same_model_with_other_weights_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    train_draft(recipe, Heard())
    trained_on = write_checkpoint(tmp_path / "other", "llama", layers=6, hidden=32, dtype="float32", seed=1)
    with pytest.raises(ConfigurationError, match="was made with target"):
        train_draft(replace(recipe, model=str(trained_on)), Heard())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "medusa"}, "--kind is 'medusa'"),
        ({"data": ()}, "--data is missing"),
        ({"batch": 0}, "--batch is 0"),
        ({"dtype": "int8"}, "--dtype is 'int8'"),
        ({"kind": "causal-lm", "taps": (1,)}, "--taps is for eagle"),
        ({"draft_vocab": 50}, "--draft-vocab is for eagle3"),
        ({"copy_layers": True}, "--copy-layers is for causal-lm"),
        ({"coupling": -1.0}, "--coupling is -1, and must be 0 or more"),
        ({"own_share": 1.0}, "--own-share is 1, and must be less than 1"),
        ({"own_share": -0.1}, "--own-share is -0.1"),
        ({"cooldown": 1.5}, "--cooldown is 1.5, and must be 1 or less"),
        ({"unroll": 40}, "too short for --unroll"),
        ({"taps": (1, 2)}, "reads one hidden state"),
        ({"taps": (9,)}, "the input of layer 9"),
        ({"batch": 1000}, "too little text for a batch"),
        ({"length": 600}, "the model's longest context 512"),
        ({"length": 9000}, "too little text to train on"),
        ({"device": "nowhere"}, "the device 'nowhere' cannot be used"),
        ({"kind": "causal-lm", "layers": 9}, "the model itself has 6"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(
    recipe: Recipe, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises((ConfigurationError, ModelError), match=complaint):
        train_draft(replace(recipe, **changes), Heard())
    assert not recipe.out.exists()


def test_a_folder_that_holds_something_else_is_left_alone(recipe: Recipe) -> None:
    recipe.out.mkdir()
    (recipe.out / "thesis.doc").write_text("ten years of work")
    with pytest.raises(ConfigurationError, match="holds something else"):
        train_draft(recipe, Heard())
    assert [file.name for file in recipe.out.iterdir()] == ["thesis.doc"]


def test_a_finished_draft_without_its_checkpoint_is_not_overwritten(recipe: Recipe) -> None:
    train_draft(recipe, Heard())
    (recipe.out / "training.pt").unlink()
    with pytest.raises(ConfigurationError, match="holds a finished draft"):
        train_draft(recipe, Heard())


def test_a_model_without_a_tokenizer_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    bare = write_checkpoint(tmp_path / "bare", "llama", layers=2, tokenizer=False)
    with pytest.raises(ModelError, match="tokenizer"):
        train_draft(replace(recipe, model=str(bare)), Heard())


def test_frequent_tokens_are_sorted_and_hold_what_must_be_there() -> None:
    counts = np.array([5, 0, 9, 1, 7, 0])
    assert frequent_tokens(counts, 3).tolist() == [0, 2, 4]
    assert frequent_tokens(counts, 3, (5,)).tolist() == [2, 4, 5]


@pytest.fixture
def command(recipe: Recipe) -> list[str]:
    given = {"--model": recipe.model, "--kind": "eagle", "--data": recipe.data[0], "--out": recipe.out}
    sizes = {"--batch": 4, "--length": 24, "--long-length": 32, "--unroll": 3, "--dtype": "float32", "--positions": 4}
    return ["train-draft", *(str(part) for pair in {**given, **sizes, "--device": "cpu"}.items() for part in pair)]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_command_trains_and_says_where_the_draft_is(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--steps", "3"]) == 0
    told = capfd.readouterr()
    assert "the draft is in" in told.out
    assert "acceptance:" in told.out + told.err


def test_a_command_that_cannot_work_ends_without_a_traceback(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--taps", "two"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: --taps is 'two'")
    assert "Traceback" not in told


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("flowspec.cli.render.stderr_console", lambda: console)
    with _Bar() as bar:
        bar.say("reading")
        bar.step(Progress(7, 7000, 1.25, 812.0, 1.0, 0.5, 60.0))
    shown = screen.getvalue()
    assert "reading" in shown
    assert "step 7" in shown
    assert "loss 1.250  812 tokens/s  1 min left" in shown


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes while the second step is being reported."""
    from flowspec.training.progress import Lines

    def step(self: Lines, progress: Any) -> None:
        if progress.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Lines, "step", step)
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_stores_the_draft_and_tells_how_to_go_on(
    command: list[str], recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--steps", "50"]) == 130
    told = capfd.readouterr().err
    assert "To go on:" in told
    assert facts_of(recipe)["steps"] == 2
    assert not facts_of(recipe)["finished"]
    assert (recipe.out / "training.pt").is_file()
