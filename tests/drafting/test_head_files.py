"""Folders of heads: every mismatch told by name, and what was saved is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowspec.drafting.head_files import config_for, load_head, new_head, save_head
from flowspec.errors import ModelError
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import FINAL
from tests.checkpoints import write_checkpoint
from tests.drafting import head_folders as folders
from tests.drafting.head_folders import refused
from tests.drafting.head_folders import write_small as write


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("target"), tokenizer=False))


def test_a_head_for_another_target_is_refused_with_both_folders(tmp_path: Path) -> None:
    folder = write(tmp_path / "head")
    for change in ({"hidden": 48}, {"vocab_size": 353}):
        other = Checkpoint(write_checkpoint(tmp_path / str(change), tokenizer=False, **change))  # type: ignore[arg-type]
        refused(folder, other, str(folder), str(other.path), "352 tokens")


def test_a_kind_that_was_not_asked_for_is_refused(tmp_path: Path, target: Checkpoint) -> None:
    refused(write(tmp_path), target, "an EAGLE-3 head, not an EAGLE-1/2 head", "drafter eagle3", kind="eagle")


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path, target: Checkpoint) -> None:
    folder = write(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, target, "pytorch_model.bin", f"flowspec convert-head {folder}")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
    ],
)
def test_a_missing_file_is_named(name: str, part: str, tmp_path: Path, target: Checkpoint) -> None:
    (write(tmp_path) / name).unlink()
    refused(tmp_path, target, part)


def test_what_is_pickled_but_no_checkpoint_is_not_offered_for_conversion(tmp_path: Path, target: Checkpoint) -> None:
    folder = write(tmp_path)
    (folder / "model.safetensors").rename(folder / "training_args.bin")
    refused(folder, target, "model.safetensors is missing", "fetch it again")


def test_json_that_is_a_directory_is_named(tmp_path: Path, target: Checkpoint) -> None:
    for name in ("config.json", "flowspec.json"):
        folder = write(tmp_path / name)
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        refused(folder, target, str(folder / name), "cannot be read", "directory")


def test_weights_that_only_their_reader_finds_damaged_are_named(tmp_path: Path, target: Checkpoint) -> None:
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    refused(tmp_path, target, str(file), "cannot be read", "fetch it again")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_finite_number_is_named(bad: float, tmp_path: Path, target: Checkpoint) -> None:
    for name in ("fc.weight", "midlayer.self_attn.q_proj.weight", "lm_head.weight", "norm.weight"):
        values = folders.random_tensors(folders.eagle3_shapes())[name]
        values.view(-1)[3] = bad
        folder = write(tmp_path / name, **{name: values})
        refused(folder, target, str(folder / "model.safetensors"), f"{name} holds numbers that are not finite")


def test_a_weight_that_is_too_large_for_its_dtype_is_named(tmp_path: Path, target: Checkpoint) -> None:
    values = folders.random_tensors(folders.eagle3_shapes())["fc.weight"]
    values[0, 0] = 1e5
    folder = write(tmp_path, **{"fc.weight": values})
    load_head(folder, target)
    refused(folder, target, "fc.weight", "as torch.float16", dtype="float16")


def test_files_with_an_index_are_read(tmp_path: Path, target: Checkpoint) -> None:
    folder = write(tmp_path)
    whole = load_head(folder, target, dtype="float64")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for number, name in enumerate(tensors):
        file = f"model-{number % 2}.safetensors"
        index[name] = file
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    split = load_head(folder, target, dtype="float64")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, split.state_dict()[name])


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"speculators_model_type": "dflash"}, ["dflash", "not supported"]),
        ({"speculators_model_type": "eagle3", "transformer_layer_config": {"model_type": "gemma3"}}, ["gemma3"]),
        (folders.EAGLE3 | {"hidden_size": "wide"}, ["hidden_size", "'wide'", "a whole number"]),
        (folders.EAGLE3 | {"num_attention_heads": None}, ["does not name num_attention_heads"]),
        (folders.EAGLE3 | {"num_key_value_heads": 3}, ["4 attention heads", "3"]),
        (folders.EAGLE3 | {"draft_vocab_size": 400}, ["400", "352"]),
        (folders.EAGLE3 | {"hidden_act": "sparkle"}, ["sparkle"]),
        (folders.EAGLE3 | {"rope_scaling": {"type": "sparkle"}}, ["sparkle"]),
        (folders.EAGLE3 | {"norm_output": True}, ["SpecForge", "flowspec.json"]),
        (folders.EAGLE3 | {"head_dim": 7}, ["config.json", "heads of 7 columns"]),
        (folders.EAGLE3 | {"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan", "a finite number"]),
        (folders.EAGLE3 | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["unsupported"]),
        (folders.EAGLE3 | {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, ["unsupported"]),
        ({"speculators_model_type": "eagle3", "transformer_layer_config": {"model_type": ["llama"]}}, ["['llama']"]),
        (folders.EAGLE3 | {"eagle_config": {"use_aux_hidden_state": False}}, ["unsupported"]),
        (folders.EAGLE3 | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": "1"}}, ["'1'", "a list"]),
        (folders.EAGLE3 | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3]}}, ["layer 4", "3 layers"]),
    ],
)
def test_a_config_that_cannot_be_used_is_told(
    config: dict[str, Any], parts: list[str], tmp_path: Path, target: Checkpoint
) -> None:
    refused(write(tmp_path, config), target, *parts)


@pytest.mark.parametrize(
    ("sidecar", "parts"),
    [
        ({"tap": [0, 1, 2]}, ["flowspec.json", "'tap'"]),
        ({"taps": "0"}, ["flowspec.json", "'0'"]),
        ({"taps": [0, 1, 4]}, ["layer 4", "3 layers"]),
        ({"taps": []}, ["no hidden state"]),
        ({"kind": "medusa"}, ["flowspec.json", "medusa"]),
        ({"kind": ["eagle3"]}, ["flowspec.json", "['eagle3']"]),
        ({"sharpness": 0}, ["flowspec.json", "above 0"]),
        ({"sharpness": "high"}, ["flowspec.json", "a number"]),
        ({"fc_norm": 1}, ["flowspec.json", "true or false"]),
        ({"fc_norm": True}, ["missing tensors: fc_norm.0.weight"]),
        ({"taps": [0, 1]}, ["fc.weight", "(32, 96)", "(32, 64)"]),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_told(
    sidecar: dict[str, Any], parts: list[str], tmp_path: Path, target: Checkpoint
) -> None:
    refused(write(tmp_path, sidecar=sidecar), target, *parts)


def test_a_head_that_cannot_be_built_is_told_with_its_file(tmp_path: Path, target: Checkpoint) -> None:
    folder = write(tmp_path, folders.EAGLE3 | {"rope_parameters": {"rope_type": "llama3"}})
    refused(folder, target, str(folder / "config.json"))


# ---- writing


VARIANTS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "eagle": ("eagle", (FINAL,), {"fc_bias": True}),
    "eagle for qwen2, two layers": ("eagle", (2,), {"attention_bias": True, "layer_count": 2}),
    "eagle3": ("eagle3", (0, 1, 2), {"draft_vocab_size": folders.DRAFT_VOCABULARY}),
    "eagle3 with everything": (
        "eagle3",
        (1, FINAL),
        {"norm_before_residual": True, "fc_norm": True, "norm_output": True, "qk_norm": True, "layer_count": 2}
        | {
            "sharpness": 2.5,
            "attention_bias": True,
            "output_bias": True,
            "mlp_bias": True,
            "fc_bias": True,
            "own_embedding": True,
        },
    ),
    "eagle3 with input_norm": ("eagle3", (0, 3, 3), {"norm_before_fc": True, "norm_output": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_what_was_saved_is_loaded(name: str, tmp_path: Path, target: Checkpoint) -> None:
    kind, taps, changes = VARIANTS[name]
    config = config_for(kind, target, taps, **changes)
    chosen = folders.draft_tokens() if "draft_vocab_size" in changes else None
    made = new_head(config, target, target_tokens=chosen, dtype="float64", spread=0.3)
    save_head(made, tmp_path)
    loaded = load_head(tmp_path, target, kind=kind, dtype="float64")
    assert loaded.config == config
    assert loaded.taps == taps
    for key, value in made.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert (made.target_tokens is None) == (loaded.target_tokens is None)
    if chosen is not None:
        assert torch.equal(loaded.target_tokens, chosen)
    stored = load_file(tmp_path / "model.safetensors")
    assert "embed_tokens.weight" not in stored or config.own_embedding
    assert any(key.startswith("midlayer." if kind == "eagle3" else "layers.0.") for key in stored)


def test_other_projects_find_the_conventions_where_they_look(tmp_path: Path, target: Checkpoint) -> None:
    """Without flowspec's own file the saved config means the same, as long as EAGLE's layout can say it."""
    changes = {"norm_before_residual": True, "fc_norm": True, "norm_output": True}
    save_head(new_head(config_for("eagle3", target, (0, 1, 3), **changes), target), tmp_path / "eagle3")
    save_head(new_head(config_for("eagle", target, (FINAL,), fc_bias=False), target), tmp_path / "eagle")
    for kind in ("eagle3", "eagle"):
        with_sidecar = load_head(tmp_path / kind, target).config
        (tmp_path / kind / "flowspec.json").unlink()
        assert load_head(tmp_path / kind, target).config == with_sidecar


def test_a_new_head_learns_its_own_weights_only(target: Checkpoint, tmp_path: Path) -> None:
    head = new_head(config_for("eagle", target, (FINAL,), fc_bias=True), target)
    learning = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert set(head.state_dict()) - learning == {"embed_tokens.weight", "lm_head.weight"}
    save_head(head, tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_a_draft_vocabulary_needs_its_tokens(target: Checkpoint) -> None:
    config = config_for("eagle3", target, (0, 1, 2), draft_vocab_size=96)
    with pytest.raises(ModelError, match="the tokens that are in it"):
        new_head(config, target)
