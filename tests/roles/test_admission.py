"""What a node makes of a request: whose sampling values, and which prompts its model can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowspec.errors import ModelError, RequestError
from flowspec.model.weights import Checkpoint
from flowspec.roles.admission import Admission
from flowspec.topology import Topology
from flowspec.wire.messages import Generate
from tests.checkpoints import write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", layers=1)


def admission(model: Path, **sampling: Any) -> Admission:
    return Admission(Topology.local(str(model), 1, drafter="none", sampling=sampling), Checkpoint(model))


def sampled(admission: Admission) -> tuple[float, int, float]:
    asked = Generate("r", None, (5, 6), False, 8, None, None, None, None, None, None, (), True, None)
    admission.check(asked)
    found = admission.admit(asked, b"peer", admission.read(asked)).sampling
    return found.temperature, found.top_k, found.top_p


def publish(model: Path, **values: Any) -> None:
    (model / "generation_config.json").write_text(json.dumps(values))


def test_the_models_own_values_are_for_what_the_topology_does_not_set(model: Path) -> None:
    publish(model, do_sample=True, temperature=0.9, top_k=40, top_p=0.5)
    assert sampled(admission(model, generation_config=True)) == (0.9, 40, 0.5)
    assert sampled(admission(model, generation_config=True, temperature=0.2, top_k=0)) == (0.2, 0, 0.5)
    assert sampled(admission(model)) == (0.0, 0, 1.0)
    publish(model, temperature=0.9, top_k=40)
    assert sampled(admission(model, generation_config=True)) == (0.0, 40, 1.0)


@pytest.mark.parametrize(
    ("values", "told"), [({"top_p": "0.9"}, "top_p cannot be '0.9'"), ({"top_k": -3}, "top_k cannot be -3")]
)
def test_values_of_the_model_that_are_none_are_told_at_the_start(
    model: Path, values: dict[str, Any], told: str
) -> None:
    publish(model, do_sample=True, **values)
    with pytest.raises(ModelError, match=f"generation_config.json: {told}"):
        admission(model, generation_config=True)
    admission(model)


def test_a_text_with_a_token_that_the_model_lacks_is_refused(model: Path) -> None:
    found = admission(model)
    found.tokenizer.add_tokens([f"<extra{number}>" for number in range(found._vocab_size)])
    text = f"the <extra{found._vocab_size - 1}> fox"
    asked = Generate("r", text, None, False, 8, None, None, None, None, None, None, (), True, None)
    found.check(asked)
    with pytest.raises(RequestError, match=r"the prompt holds '<extra.*', which the tokenizer knows as"):
        found.read(asked)
