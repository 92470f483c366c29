"""Claims about `--begin`: a head that begins with another one is made like it, whatever text and defaults are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_files import config_for, load_head, new_head, save_head
from flowspec.errors import ConfigurationError, InvariantViolation
from flowspec.model.weights import Checkpoint
from flowspec.training.draft import train_draft
from flowspec.training.heads import HeadStudent
from flowspec.training.recipe import Recipe
from flowspec.wire.messages import FINAL
from tests.checkpoints import write_checkpoint
from tests.training.test_loop import Heard

DRAFT_VOCABULARY = 60


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("target")
    return Checkpoint(write_checkpoint(folder, "llama", layers=6, hidden=32, dtype="float32"))


def text_of(folder: Path, *words: str) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(40):
        (folder / f"part{index}.txt").write_text(" ".join(random.choice(words, 120)))
    return folder


@pytest.fixture
def recipe(target: Checkpoint, tmp_path: Path) -> Recipe:
    """One step at rate 0: the weights stay as they are."""
    return Recipe(
        model=str(target.path),
        kind="eagle3",
        data=(text_of(tmp_path / "text", "quick brown fox", "jumps over", "the lazy dog", "and returns"),),
        out=tmp_path / "draft",
        steps=1,
        rate=0.0,
        batch=4,
        length=24,
        long_length=32,
        unroll=3,
        dtype="float32",
        positions=0,
    )


def head_of(target: Checkpoint, folder: Path, kind: str, taps: tuple[int, ...], **changes: Any) -> DraftHead:
    """A head that never learned, stored in `folder`."""
    tokens = torch.arange(100, 100 + 2 * DRAFT_VOCABULARY, 2) if "draft_vocab_size" in changes else None
    made = new_head(config_for(kind, target, taps, **changes), target, target_tokens=tokens, spread=0.3)
    save_head(made, folder, dtype=torch.bfloat16)
    return made


CONVENTIONS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "taps in another order": ("eagle3", (5, 1, 3), {}),
    "more of them": ("eagle3", (5, 1, 3, FINAL), {}),
    "draft vocabulary": ("eagle3", (2, 3, 4), {"draft_vocab_size": DRAFT_VOCABULARY}),
    "an embedding of its own": ("eagle3", (2, 3, 3), {"own_embedding": True}),
    "norms": ("eagle3", (2, 3, 3), {"norm_before_residual": True, "fc_norm": True, "norm_output": True}),
    "one norm": ("eagle3", (2, 3, 3), {"norm_before_fc": True, "qk_norm": True}),
    "biases": ("eagle3", (2, 3, 3), {"attention_bias": True, "output_bias": True, "mlp_bias": True, "fc_bias": True}),
    "numbers": ("eagle3", (2, 3, 3), {"rms_norm_eps": 1e-3, "rope": {"rope_type": "default", "rope_theta": 5e5}}),
    "sizes": ("eagle3", (2, 3, 3), {"intermediate_size": 80, "heads": 2, "kv_heads": 1, "head_dim": 24}),
    "eagle": ("eagle", (4,), {"own_embedding": True, "fc_bias": True}),
    "eagle without a bias": ("eagle", (FINAL,), {"fc_bias": False, "rms_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_head_is_made_like_the_one_it_begins_with(
    name: str, layers: int, recipe: Recipe, target: Checkpoint, tmp_path: Path
) -> None:
    kind, taps, changes = CONVENTIONS[name]
    given = head_of(target, tmp_path / "given", kind, taps, **changes)
    train_draft(replace(recipe, kind=kind, begin=tmp_path / "given", layers=layers), Heard())
    made = load_head(recipe.out, target)
    assert replace(made.config, layer_count=1, sharpness=given.config.sharpness) == given.config
    assert made.config.layer_count == layers
    before, after = load_file(tmp_path / "given" / "model.safetensors"), load_file(recipe.out / "model.safetensors")
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_a_draft_vocabulary_stays_with_its_rows_when_the_text_is_another(recipe: Recipe, tmp_path: Path) -> None:
    first = replace(recipe, draft_vocab=DRAFT_VOCABULARY)
    train_draft(first, Heard())
    other = text_of(tmp_path / "other", "zebras 123", "UPPER CASE (x, y)", "mix; of: signs!", "12 + 30 = 42")
    # As many as it has: no contradiction.
    for index, size in enumerate((None, DRAFT_VOCABULARY)):
        again = replace(recipe, begin=first.out, data=(other,), out=tmp_path / f"again-{index}", draft_vocab=size)
        train_draft(again, Heard())
        before, after = load_file(first.out / "model.safetensors"), load_file(again.out / "model.safetensors")
        for key in ("d2t", "t2d", "lm_head.weight"):
            assert torch.equal(before[key], after[key]), key


def test_weights_are_not_taken_from_a_head_with_other_tokens(
    recipe: Recipe, target: Checkpoint, tmp_path: Path
) -> None:
    head_of(target, tmp_path / "given", "eagle3", (2, 3, 4), draft_vocab_size=DRAFT_VOCABULARY)
    config = config_for("eagle3", target, (2, 3, 4), draft_vocab_size=DRAFT_VOCABULARY)
    other = new_head(config, target, target_tokens=torch.arange(DRAFT_VOCABULARY))
    with pytest.raises(InvariantViolation, match="other taps or tokens"):
        HeadStudent(other, target, 2).begin(tmp_path / "given")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"taps": (2, 3, 4)}, r"--taps names 2,3,4, and the head in \S+ reads 5,1,3"),
        ({"draft_vocab": 40}, r"--draft-vocab is 40, and the head in \S+ has 60 tokens"),
        ({"draft_vocab": 5000}, r"--draft-vocab is 5000, and the head in \S+ has 60 tokens"),
        ({"kind": "eagle"}, "an EAGLE-3 head, not an EAGLE-1/2 head"),
    ],
)
def test_what_contradicts_the_given_head_is_refused(
    changes: dict[str, Any], complaint: str, recipe: Recipe, target: Checkpoint, tmp_path: Path
) -> None:
    head_of(target, tmp_path / "given", "eagle3", (5, 1, 3), draft_vocab_size=DRAFT_VOCABULARY)
    with pytest.raises(ConfigurationError, match=complaint):
        train_draft(replace(recipe, begin=tmp_path / "given", **changes), Heard())
    assert not recipe.out.exists()


def test_an_embedding_of_its_own_is_said_aloud(recipe: Recipe, target: Checkpoint, tmp_path: Path) -> None:
    head_of(target, tmp_path / "given", "eagle3", (2, 3, 3))
    heard = Heard()
    added = replace(recipe, begin=tmp_path / "given", own_embedding=True)
    train_draft(added, heard)
    assert any("gets an embedding of its own" in said for said in heard.said)
    assert load_head(added.out, target).config.own_embedding
    heard = Heard()
    train_draft(replace(recipe, begin=added.out, out=tmp_path / "kept"), heard)
    assert any("has one of its own" in said for said in heard.said)
    assert load_head(tmp_path / "kept", target).config.own_embedding


def test_a_checkpoint_is_of_one_vocabulary_and_one_set_of_conventions(
    recipe: Recipe, target: Checkpoint, tmp_path: Path
) -> None:
    head_of(target, tmp_path / "given", "eagle3", (2, 3, 4), draft_vocab_size=DRAFT_VOCABULARY)
    begun = replace(recipe, begin=tmp_path / "given", steps=2)
    answers = iter([False, True])
    train_draft(begun, Heard(), stop=lambda: next(answers))
    state = torch.load(recipe.out / "training.pt", weights_only=True)["settings"]
    assert state["draft vocabulary's tokens"]
    side = tmp_path / "given" / "flowspec.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | {"norm_before_residual": True}))
    with pytest.raises(ConfigurationError, match="was made with conventions"):
        train_draft(begun, Heard())


@pytest.mark.parametrize("layers", [1, 2])
def test_taps_that_the_model_does_not_have_are_told_by_their_option(
    layers: int, recipe: Recipe, tmp_path: Path
) -> None:
    small = write_checkpoint(tmp_path / "small", "llama", layers=layers, hidden=32, dtype="float32")
    taps = None if layers == 1 else (2, 99, 1)
    with pytest.raises(ConfigurationError, match=r"--taps names inputs of layers, 0 to \d") as caught:
        train_draft(replace(recipe, model=str(small), taps=taps), Heard())
    assert "flowspec.json" not in str(caught.value)


def test_the_shipped_head_grows_as_the_documentation_says(recipe: Recipe, target: Checkpoint) -> None:
    from flowspec.demo import EAGLE3_DIR, MODEL_DIR

    begun = replace(recipe, model="demo", begin=Path("demo-eagle3"), layers=3, unroll=2)
    train_draft(begun, Heard())
    demo = Checkpoint(MODEL_DIR)
    given, made = load_head(EAGLE3_DIR, demo), load_head(recipe.out, demo)
    assert made.taps == given.taps
    assert made.config.layer_count == 3
