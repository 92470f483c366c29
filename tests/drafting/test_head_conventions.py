"""One meaning for taps and draft vocabularies, whatever project wrote the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowspec.drafting.head_files import load_head
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import FINAL
from tests.checkpoints import write_checkpoint
from tests.drafting import head_folders as folders
from tests.drafting.head_folders import refused
from tests.drafting.head_folders import write_small as write


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("target"), tokenizer=False))


# ---- taps


IDS = "eagle_aux_hidden_state_layer_ids"
SPECULATORS = folders.SPECULATORS


@pytest.mark.parametrize(
    ("config", "sidecar", "chosen", "expected"),
    [
        # EAGLE's, SGLang's and SpecForge's numbers name layers whose output is taken; speculators' their input.
        (folders.EAGLE3 | {"eagle_config": {IDS: [0, 1, 2]}}, None, None, (1, 2, 3)),
        (folders.EAGLE3 | {"eagle_config": {IDS: [-1, 0, 2]}}, None, None, (0, 1, 3)),
        (SPECULATORS | {IDS: [0, 1, 3]}, None, None, (0, 1, 3)),
        (folders.EAGLE3 | {"eagle_config": {}, IDS: [0, 2, 3]}, None, None, (0, 2, 3)),
        (folders.EAGLE3 | {"eagle_config": {IDS: [0, 1, 2]}, IDS: [1, 2, 3]}, None, None, (1, 2, 3)),
        # Nobody says: inputs of the layers 2, n // 2 and n - 3 of n (here 3).
        (folders.EAGLE3 | {"eagle_config": None}, None, None, (2, 1, 0)),
        (SPECULATORS | {IDS: None}, None, None, (2, 1, 0)),
        # What is said beside the config wins over it, what the caller says over both.
        (folders.EAGLE3, {"taps": [1, 2, FINAL]}, None, (1, 2, FINAL)),
        (SPECULATORS, {"taps": [0, 1, 2]}, [3, 2, 1], (3, 2, 1)),
        (SPECULATORS, None, (1, 1, 1), (1, 1, 1)),
    ],
)
def test_taps_are_inputs_of_layers_whoever_numbered_them(
    config: dict[str, Any],
    sidecar: dict[str, Any] | None,
    chosen: Any,
    expected: tuple[int, ...],
    tmp_path: Path,
    target: Checkpoint,
) -> None:
    prefix = "layers.0." if config.get("speculators_model_type") else "midlayer."
    folder = write(tmp_path, config, folders.eagle3_shapes(prefix), sidecar)
    assert load_head(folder, target, taps=chosen).taps == expected


def test_taps_named_twice_and_differently_are_refused(tmp_path: Path, target: Checkpoint) -> None:
    config = folders.EAGLE3 | {"eagle_config": {IDS: [0, 1, 2]}, IDS: [0, 1, 2]}
    refused(write(tmp_path, config), target, "[1, 2, 3]", "[0, 1, 2]", "flowspec.json")
    assert load_head(tmp_path, target, taps=(0, 1, 2)).taps == (0, 1, 2)


def test_eagle_reads_one_state_and_may_be_told_which(tmp_path: Path, target: Checkpoint) -> None:
    folder = write(tmp_path, folders.EAGLE, folders.eagle_shapes())
    assert load_head(folder, target, taps=(3,)).taps == (3,)
    refused(folder, target, "one hidden state", taps=(0, 1))


# ---- draft vocabularies


def _swapped(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens = maps["d2t"] + torch.arange(len(maps["d2t"]))
    tokens[[3, 4]] = tokens[[4, 3]]
    return maps | {"d2t": tokens - torch.arange(len(tokens))}


def _absolute(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return maps | {"d2t": maps["d2t"] + torch.arange(len(maps["d2t"]))}


def _one_more(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    marks = maps["t2d"].clone()
    marks[int((~marks).nonzero()[0])] = True
    return maps | {"t2d": marks}


@pytest.mark.parametrize("damage", [_swapped, _absolute, _one_more])
def test_maps_that_contradict_each_other_are_refused(damage: Any, tmp_path: Path, target: Checkpoint) -> None:
    maps = damage(folders.vocabulary_maps(folders.draft_tokens()))
    refused(write(tmp_path, **maps), target, str(tmp_path), "d2t and t2d")


@pytest.mark.parametrize(
    ("maps", "part"),
    [
        ({"d2t": torch.zeros(95, dtype=torch.int64)}, "d2t is (95,), expected (96,)"),
        ({"t2d": torch.zeros(351, dtype=torch.bool)}, "t2d is (351,), expected (352,)"),
        ({"d2t": torch.zeros(96)}, "d2t is torch.float32, expected whole numbers"),
    ],
)
def test_maps_of_another_size_are_refused(
    maps: dict[str, torch.Tensor], part: str, tmp_path: Path, target: Checkpoint
) -> None:
    refused(write(tmp_path, **maps), target, part)


def test_maps_of_a_whole_vocabulary_may_be_there_if_they_change_nothing(tmp_path: Path, target: Checkpoint) -> None:
    config = folders.EAGLE3 | {"draft_vocab_size": folders.VOCABULARY}
    shapes = folders.eagle3_shapes(draft_vocabulary=folders.VOCABULARY)
    same = folders.vocabulary_maps(torch.arange(folders.VOCABULARY))
    assert load_head(write(tmp_path / "same", config, shapes, **same), target).target_tokens is None
    other = same | {"d2t": torch.ones(folders.VOCABULARY, dtype=torch.int64)}
    refused(write(tmp_path / "other", config, shapes, **other), target, "d2t and t2d")
