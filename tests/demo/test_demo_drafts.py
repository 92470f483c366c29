"""Claims about the drafts that come with the demo model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from flowspec.demo import MODEL_DIR, SHIPPED
from flowspec.drafting.head_files import load_head
from flowspec.model.sampling import SHARPNESS
from flowspec.model.weights import Checkpoint
from flowspec.training.draft_card import card
from flowspec.training.target import Target

DRAFTS = sorted(set(SHIPPED) - {"demo"})
HEADS = sorted(set(DRAFTS) - {"demo-draft"})


def facts(name: str) -> dict[str, Any]:
    return dict(json.loads((SHIPPED[name] / "training.json").read_text()))


@pytest.mark.parametrize("name", HEADS)
def test_a_shipped_head_fits_the_model_and_is_what_its_facts_say(name: str) -> None:
    head = load_head(SHIPPED[name], Checkpoint(MODEL_DIR))
    assert (head.kind, head.layer_count) == (facts(name)["kind"], facts(name)["recipe"]["layers"])
    assert head.config.sharpness == facts(name).get("sharpness", SHARPNESS)


@pytest.mark.parametrize("name", DRAFTS)
def test_a_shipped_draft_was_made_for_the_model_that_is_shipped(name: str) -> None:
    target = Target.load(Checkpoint(MODEL_DIR), (), device=torch.device("cpu"), dtype=torch.bfloat16)
    assert facts(name)["target_digest"] == target.digest()
    assert facts(name)["finished"]


@pytest.mark.parametrize("name", DRAFTS)
def test_a_shipped_drafts_card_tells_its_facts(name: str) -> None:
    assert (SHIPPED[name] / "README.md").read_text() == card(facts(name))
