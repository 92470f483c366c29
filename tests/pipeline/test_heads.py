"""Draft heads and hybrids in whole pipelines: heads that were never trained cost guesses, never a token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from flowspec.cluster import local_topology
from flowspec.drafting.drafter import build_drafter
from flowspec.drafting.head_files import config_for, new_head, save_head
from flowspec.drafting.plan import kind_in, plan_drafter
from flowspec.errors import ModelError
from flowspec.model.weights import Checkpoint
from flowspec.topology import Topology
from flowspec.wire.messages import FINAL
from tests.pipeline.running import alone, complete, pipeline
from tests.pipeline.test_exactness import PROMPT, SAMPLED, model_of, prompt_of

TAPS = {"eagle": (FINAL,), "eagle3": (2, 3, 5)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def head_of(folder: Path, model: Path, kind: str) -> Path:
    path = folder / f"{model.name}-{kind}"
    if not path.exists():
        target = Checkpoint(model)
        save_head(new_head(config_for(kind, target, TAPS[kind]), target, dtype="float64", spread=0.3), path)
    return path


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("qwen2", True), ("mistral", True)], ids=["llama", "qwen2", "mistral"]
)
@pytest.mark.parametrize("kind", ["eagle", "eagle3", "hybrid-of-eagle", "hybrid-of-eagle3"])
async def test_a_head_changes_no_token(checkpoints: Path, stages: int, family: str, tied: bool, kind: str) -> None:
    model = model_of(checkpoints, family, tied, None)
    of = kind.removeprefix("hybrid-of-")
    drafter: dict[str, Any] = {"kind": of, "model": str(head_of(checkpoints, model, of))}
    if of != kind:
        drafter |= {"kind": "hybrid", "of": of}
    expected = alone(model, PROMPT, 24)
    async with pipeline(model, stages, drafter=drafter) as running:
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == expected
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        fast = await complete(running, PROMPT, "flowspec", **SAMPLED)
        assert fast.token_ids == plain.token_ids
        assert fast.stats is not None
        assert fast.stats.drafted > 0
        long = await complete(running, prompt_of(300), "flowspec")
        assert list(long.token_ids) == alone(model, prompt_of(300), 24)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_a_head_will_hold_is_known_beforehand(checkpoints: Path, kind: str, tied: bool, dtype: str) -> None:
    model = model_of(checkpoints, "llama", tied, None)
    head = str(head_of(checkpoints, model, kind))
    topology = Topology.local(str(model), 2, drafter={"kind": kind, "model": head}, dtype=dtype)
    plan = plan_drafter(topology, Checkpoint(model))
    drafter = build_drafter(topology, Checkpoint(model))
    assert drafter is not None
    assert plan.weights == drafter.weight_bytes
    assert 0 < plan.copied <= plan.vocabulary < plan.weights
    assert plan.taps == drafter.taps == TAPS[kind]


def test_the_topology_has_the_last_word_on_taps(checkpoints: Path) -> None:
    model = model_of(checkpoints, "llama", False, None)
    head = str(head_of(checkpoints, model, "eagle3"))
    for taps in ((1, 2, 6), (0, 4, FINAL)):
        topology = Topology.local(str(model), 2, drafter={"kind": "eagle3", "model": head, "taps": list(taps)})
        drafter = build_drafter(topology, Checkpoint(model))
        assert drafter is not None
        assert drafter.taps == taps
    topology = Topology.local(str(model), 2, drafter={"kind": "eagle3", "model": head, "taps": [1, 2, 7]})
    with pytest.raises(ModelError, match="layer 7"):
        build_drafter(topology, Checkpoint(model))


def test_a_folder_tells_what_drafter_it_is(checkpoints: Path) -> None:
    model = model_of(checkpoints, "llama", False, None)
    for kind in TAPS:
        head = str(head_of(checkpoints, model, kind))
        assert local_topology(str(model), 2, draft=head).effective_drafter.kind == kind
        hybrid = local_topology(str(model), 2, drafter="hybrid", draft=head).effective_drafter
        assert (hybrid.kind, hybrid.model_kind, hybrid.model_name) == ("hybrid", kind, head)
    assert kind_in(str(model)) == "causal-lm"
    assert local_topology(str(model), 2, drafter="hybrid", draft=str(model)).effective_drafter.of == "causal-lm"


@pytest.mark.parametrize(
    ("name", "kind"), [("demo-eagle", "eagle"), ("demo-eagle3", "eagle3"), ("demo-draft", "causal-lm")]
)
def test_a_shipped_name_tells_what_drafter_it_is(name: str, kind: str) -> None:
    assert kind_in(name) == kind
    chosen = local_topology("demo", 2, drafter="hybrid", draft=name).effective_drafter
    assert (chosen.of, chosen.model_name) == (kind, name)


def test_a_hub_id_tells_what_drafter_it_is(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoints, "llama", False, None)
    kinds = {"eagle3": head_of(checkpoints, model, "eagle3"), "causal-lm": model}
    for kind, folder in kinds.items():
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, found=str(folder), **__: found)
        assert kind_in("some/hub-id") == kind

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="of some/hub-id is neither here"):
        kind_in("some/hub-id")


@pytest.mark.parametrize("kind", TAPS)
def test_a_head_that_cannot_be_read_is_not_taken_for_a_language_model(
    kind: str, checkpoints: Path, tmp_path: Path
) -> None:
    whole = head_of(checkpoints, model_of(checkpoints, "llama", False, None), kind)
    pickled = shutil.copytree(whole, tmp_path / "pickled")
    (pickled / "flowspec.json").unlink()
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="flowspec convert-head"):
        kind_in(str(pickled))
    sidecar = shutil.copytree(whole, tmp_path / "sidecar")
    (sidecar / "flowspec.json").write_text("{")
    with pytest.raises(ModelError, match=r"flowspec\.json is not valid JSON"):
        kind_in(str(sidecar))
    (sidecar / "flowspec.json").write_text('{"kind": "medusa"}')
    with pytest.raises(ModelError, match="kind is 'medusa'"):
        kind_in(str(sidecar))


def test_a_language_model_that_cannot_be_read_is_not_taken_for_a_head(checkpoints: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model_of(checkpoints, "llama", False, None), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    assert kind_in(str(broken)) == "causal-lm"


def test_a_head_of_another_kind_is_refused(checkpoints: Path) -> None:
    model = model_of(checkpoints, "llama", False, None)
    topology = Topology.local(
        str(model), 2, drafter={"kind": "eagle", "model": str(head_of(checkpoints, model, "eagle3"))}
    )
    with pytest.raises(ModelError, match="eagle3"):
        build_drafter(topology, Checkpoint(model))
