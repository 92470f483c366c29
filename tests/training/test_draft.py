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
from flowspec.training import own_text
from flowspec.training.documents import Document
from flowspec.training.draft import repeats, train_draft
from flowspec.training.heads import frequent_tokens
from flowspec.training.progress import Progress
from flowspec.training.recipe import Recipe
from flowspec.training.sampling import complete
from flowspec.training.storage import load_checkpoint
from flowspec.training.windows import TokenFile
from flowspec.wire.messages import FINAL
from tests.checkpoints import EOS_ID, write_checkpoint
from tests.disks import no_file_over
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


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model writes two completions at a time; so many at a time it wrote."""
    counts: list[int] = []

    def counted(model: Any, prompts: torch.Tensor, *how: Any) -> torch.Tensor:
        counts.append(len(prompts))
        return complete(model, prompts, *how)

    monkeypatch.setattr(own_text, "BATCH", 2)
    monkeypatch.setattr(own_text, "complete", counted)
    return counts


def test_own_text_that_was_broken_off_goes_on_where_it_was(recipe: Recipe, sampled: list[int]) -> None:
    class Impatient(Heard):
        def say(self, text: str) -> None:
            super().say(text)
            if "4 of 7" in text:
                raise KeyboardInterrupt

    asked = replace(recipe, self_generate=7, prompt_length=8)
    whole = replace(asked, out=recipe.out.with_name("whole"))
    train_draft(whole, Heard())
    sampled.clear()
    with pytest.raises(KeyboardInterrupt):
        train_draft(asked, Impatient())
    train_draft(asked, Heard())
    assert sampled == [2, 2, 2, 1]
    one, other = (load_checkpoint(folder / "own-text.pt") for folder in (whole.out, recipe.out))
    assert one is not None
    assert other is not None
    assert torch.equal(one["rows"], other["rows"])


@pytest.mark.parametrize("changes", [{"seed": 1}, {"suffixes": (".md",)}, {"temperature": 0.5}])
def test_completions_of_other_prompts_are_not_taken(
    recipe: Recipe, text: Path, sampled: list[int], changes: dict[str, Any]
) -> None:
    asked = replace(recipe, self_generate=4, prompt_length=8)
    train_draft(asked, Heard())
    (text / "other.md").write_text("the sun sleeps in the den and the dog is up " * 100)
    with pytest.raises(ConfigurationError, match="completions of other text, or made with other settings"):
        train_draft(replace(asked, **changes), Heard())
    for file in set(recipe.out.iterdir()) - {recipe.out / "own-text.pt"}:
        file.unlink()
    sampled.clear()
    heard = Heard()
    train_draft(replace(asked, **changes), heard)
    assert sampled == [2, 2]
    assert any("they are replaced" in said for said in heard.said)


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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"coupling": 2.0}, r"coupling 0.0, and now it is 2.0"),
        ({"feature_weight": 0.5}, r"feature weight 0.1, and now it is 0.5"),
        ({"decay": 0.5}, r"decay 0.8, and now it is 0.5"),
        ({"begin": "itself"}, r"begin None, and now it is [0-9a-f]{16}"),
    ],
)
def test_a_training_is_not_resumed_as_another_one(recipe: Recipe, changes: dict[str, Any], complaint: str) -> None:
    train_draft(recipe, Heard())
    if "begin" in changes:
        changes = {"begin": recipe.out}
    with pytest.raises(ConfigurationError, match=complaint):
        train_draft(replace(recipe, **changes), Heard())


def test_a_finished_training_is_left_as_it_was(recipe: Recipe) -> None:
    first = train_draft(recipe, Heard())
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in recipe.out.iterdir()}
    heard = Heard()
    again = train_draft(replace(recipe, rate=0.1, batch=2, note="much better"), heard)
    assert "already finished, at step 4: nothing was trained" in heard.said
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in recipe.out.iterdir()} == before
    assert (again.finished, again.facts) == (True, first.facts)


def test_a_finished_training_whose_export_failed_is_exported(recipe: Recipe, target: Path) -> None:
    train_draft(recipe, Heard())
    (recipe.out / "training.json").unlink()
    (recipe.out / "model.safetensors").unlink()
    train_draft(replace(recipe, rate=0.1), Heard())
    load_head(recipe.out, Checkpoint(target))
    assert facts_of(recipe)["recipe"]["rate"] == 1.0


def test_what_a_later_run_did_differently_is_told(recipe: Recipe) -> None:
    train_draft(recipe, Heard())
    assert "stretches" not in facts_of(recipe)
    train_draft(replace(recipe, steps=6, rate=0.5), Heard())
    facts = facts_of(recipe)
    assert facts["recipe"]["rate"] == 0.5
    assert [(each["from_step"], each["rate"]) for each in facts["stretches"]] == [(0, 1.0), (4, 0.5)]
    card = (recipe.out / "README.md").read_text()
    assert "From step 4 on with steps 6 (before: 4), rate 0.5 (before: 1.0)." in card


def test_a_draft_tells_with_whose_weights_it_began(recipe: Recipe, tmp_path: Path) -> None:
    train_draft(recipe, Heard())
    second = replace(recipe, begin=recipe.out, out=tmp_path / "second", steps=2)
    train_draft(second, Heard())
    third = replace(recipe, begin=second.out, out=tmp_path / "third")
    train_draft(third, Heard())
    first = {"draft": str(recipe.out), "steps": 4, "tokens": facts_of(recipe)["tokens"]}
    assert facts_of(second)["begin"] == first
    begin = facts_of(third)["begin"]
    assert begin == {"draft": str(second.out), "steps": 2, "tokens": facts_of(second)["tokens"], "begin": first}
    card = (third.out / "README.md").read_text()
    assert f"It began with the weights of {second.out} (2 steps, {begin['tokens']} tokens), which had begun" in card
    assert "began" not in (recipe.out / "README.md").read_text()


def test_a_beginning_that_tells_nothing_of_itself_is_named_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    train_draft(recipe, Heard())
    (recipe.out / "training.json").write_text('{"steps": "many", "begin": {"draft": 7}}')
    second = replace(recipe, begin=recipe.out, out=tmp_path / "second")
    train_draft(second, Heard())
    assert facts_of(second)["begin"] == {"draft": str(recipe.out)}
    assert f"It began with the weights of {recipe.out}." in (second.out / "README.md").read_text()


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
        ({"own_share": float("nan")}, "--own-share is nan, and must be a finite number"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"rate": float("inf")}, "--rate is inf"),
        ({"seed": -1}, "--seed is -1, and must be 0 or more"),
        ({"seed": 10**22}, r"--seed is 1000\d+, and must be less than 2\*\*63"),
        ({"device": "meta"}, "there is no device meta here"),
        ({"device": "hpu"}, "there is no device hpu here"),
        ({"unroll": 40}, "too short for --unroll"),
        ({"taps": (1, 2)}, "reads one hidden state"),
        ({"taps": (9,)}, "the input of layer 9"),
        ({"batch": 1000}, "too little text for a batch"),
        ({"length": 600}, "the model's longest context 512"),
        ({"length": 9000}, "too little text to train on"),
        ({"device": "nowhere"}, "there is no device nowhere here"),
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
    with pytest.raises(ConfigurationError, match=r"holds a draft, and no training\.pt"):
        train_draft(recipe, Heard())


def test_the_folder_of_a_training_that_was_killed_while_it_stored_something_is_taken(recipe: Recipe) -> None:
    (recipe.out / "draft.part").mkdir(parents=True)
    for name in ("training.part", "own-text.part"):
        (recipe.out / name).write_text("half")
    recipe.check()


@pytest.mark.parametrize("out", ["/proc/draft", "{}/file/draft", "{}/new/" + "long" * 100])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    recipe: Recipe, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        train_draft(replace(recipe, out=Path(out.format(tmp_path)), model="no model at all"), Heard())
    assert not (tmp_path / "new").exists()


def test_a_draft_is_exported_although_its_last_checkpoint_finds_no_room(recipe: Recipe, target: Path) -> None:
    small = replace(recipe, kind="eagle3", draft_vocab=40, checkpoint_seconds=-1.0)
    with no_file_over(60_000):
        outcome = train_draft(small, Heard())
    assert outcome.finished
    assert outcome.unsaved is not None
    assert "File too large" in outcome.unsaved
    assert not (recipe.out / "training.pt").exists()
    load_head(recipe.out, Checkpoint(target))
    assert facts_of(recipe)["finished"]


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


def test_ctrl_c_while_the_model_writes_keeps_what_it_wrote_and_tells_how_to_go_on(
    command: list[str], recipe: Recipe, sampled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    from flowspec.training.progress import Lines

    class Interrupting(Lines):
        def say(self, text: str) -> None:
            if "4 of 9" in text:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lines, "say", Interrupting.say)
        assert run([*command, "--steps", "2", "--self-generate", "9"]) == 130
    told = capfd.readouterr().err
    assert f"interrupted; {recipe.out} keeps own-text.pt. To go on:\n  flowspec" in told
    sampled.clear()
    assert run([*command, "--steps", "2", "--self-generate", "9"]) == 0
    assert sampled == [2, 2, 1]


def test_a_checkpoint_that_found_no_room_is_told_at_the_end(
    command: list[str], recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    with no_file_over(60_000):
        assert run([*command, "--steps", "2"]) == 0
    told = capfd.readouterr().out
    assert f"the draft is in {recipe.out}" in told
    assert "it cannot be trained on from its end: " in told
    assert "File too large" in told
