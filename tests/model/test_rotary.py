"""Positions are turned by the same frequencies in every call of a pipeline, and by those that its context asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowspec.errors import ModelError
from flowspec.model.check import WholeModel
from flowspec.model.target import open_target
from flowspec.model.weights import Checkpoint
from flowspec.topology import Topology
from tests.checkpoints import write_checkpoint
from tests.model.conftest import oracle_logits
from tests.model.running import Blocks

SHORT, CONTEXT = 32, 512
TOKENS = [(7 * i) % 300 + 2 for i in range(90)]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": SHORT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
CUTS = [((0, 3), None), ((0, 1, 3), 7), ((0, 3), 1)]


def edit_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.fixture(scope="module", params=["llama", "phi3"])
def longrope(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("longrope"), request.param, context=CONTEXT, tokenizer=False)
    return edit_config(folder, rope_parameters=LONGROPE, original_max_position_embeddings=SHORT)


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


@pytest.mark.parametrize(("cuts", "chunk"), CUTS)
def test_a_longrope_model_has_its_short_factors_unless_more_context_is_asked_for(
    longrope: Path, cuts: tuple[int, ...], chunk: int | None
) -> None:
    assert Checkpoint(longrope).context_limit == SHORT
    found = Blocks(longrope, cuts).run_chain(TOKENS, chunk)
    # Drafts may lie beyond the context; nothing of what is within depends on them.
    assert furthest(found[:SHORT], oracle_logits(longrope, TOKENS[:SHORT])) < 1e-10


@pytest.mark.parametrize(("cuts", "chunk"), CUTS)
def test_a_longrope_model_has_its_long_factors_from_the_first_token_on_where_more_context_is_asked_for(
    longrope: Path, cuts: tuple[int, ...], chunk: int | None
) -> None:
    asked = Checkpoint(longrope, 100)
    assert asked.context_limit == 100
    found = Blocks(asked, cuts).run_chain(TOKENS, chunk)
    assert furthest(found, oracle_logits(longrope, TOKENS)) < 1e-10
    few = Blocks(asked, cuts).run_chain(TOKENS[:20], chunk)
    assert furthest(few, found[:20]) < 1e-10
    assert furthest(few, oracle_logits(longrope, TOKENS[:20])) > 0.1


@pytest.mark.parametrize("context", [None, 20, 100])
def test_the_whole_model_of_a_check_has_the_factors_of_the_pipeline(longrope: Path, context: int | None) -> None:
    whole = WholeModel(str(longrope), "float64", context).logits(TOKENS[:20], 20)
    assert furthest(whole, Blocks(Checkpoint(longrope, context), (0, 3)).run_chain(TOKENS[:20], 3)) < 1e-10


def test_nodes_that_would_turn_positions_differently_hold_different_models(longrope: Path) -> None:
    short = Checkpoint(longrope).fingerprint()
    assert Checkpoint(longrope, SHORT).fingerprint() == short
    assert Checkpoint(longrope, SHORT + 1).fingerprint() == Checkpoint(longrope, CONTEXT).fingerprint() != short


def test_the_context_of_a_topology_decides(longrope: Path) -> None:
    topology = Topology.local(str(longrope), 2)
    assert open_target(topology, str(longrope)).context_limit == SHORT
    longer = topology.replace(limits={"context": 100})
    assert open_target(longer, str(longrope)).context_limit == 100


def test_no_context_is_larger_than_the_model_knows_positions(longrope: Path) -> None:
    assert Checkpoint(longrope, 10 * CONTEXT).context_limit == CONTEXT


@pytest.mark.parametrize(("cuts", "chunk"), CUTS)
def test_a_dynamic_model_turns_by_plain_frequencies_within_its_context(
    tmp_path: Path, cuts: tuple[int, ...], chunk: int | None
) -> None:
    path = write_checkpoint(tmp_path, "llama", context=SHORT, tokenizer=False)
    edit_config(path, rope_parameters=DYNAMIC)
    assert Checkpoint(path, CONTEXT).context_limit == SHORT
    found = Blocks(path, cuts).run_chain(TOKENS, chunk)
    assert furthest(found[:SHORT], oracle_logits(path, TOKENS[:SHORT])) < 1e-10


@pytest.mark.parametrize(
    "rope",
    [
        {**LONGROPE, "short_factor": [1.0] * 3},
        {key: value for key, value in LONGROPE.items() if key != "long_factor"},
        {**LONGROPE, "original_max_position_embeddings": None},
        {"rope_type": "su", "rope_theta": 10000.0},
        {"rope_type": "yarn", "rope_theta": 10000.0},
    ],
)
def test_what_a_config_says_wrongly_of_positions_is_a_model_error(tmp_path: Path, rope: dict[str, Any]) -> None:
    path = edit_config(write_checkpoint(tmp_path, "llama", tokenizer=False), rope_parameters=rope)
    with pytest.raises(ModelError):
        Blocks(path, (0, 3)).run_chain(TOKENS[:3])
