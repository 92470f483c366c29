"""Where a node computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowspec.errors import ModelError
from flowspec.model.block import LayerBlock
from flowspec.model.device import available_devices, find_device
from flowspec.model.layout import block_bytes
from flowspec.model.weights import Checkpoint
from flowspec.roles.introduction import load_stage
from flowspec.topology import Topology
from tests.checkpoints import write_checkpoint


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_is_the_best_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, best in ((2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")):
        pretend(monkeypatch, cuda, mps)
        assert find_device("auto") == best == available_devices()[0]
        assert find_device("cpu") == "cpu"


def test_what_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert [find_device(named) for named in ("cuda", "cuda:0", "cuda:01")] == ["cuda", "cuda:0", "cuda:01"]
    for named in ("cuda:2", "mps"):
        with pytest.raises(
            ModelError, match=rf"(?s)node stage-1: there is no device {named}.*cuda, cuda:0, cuda:1, cpu"
        ):
            find_device(named, "stage-1")
    pretend(monkeypatch, 0)
    with pytest.raises(ModelError, match="there is no device cuda:x here"):
        find_device("cuda:x")
    with pytest.raises(ModelError, match=r"(?s)there is no device cuda here.*may be cpu on this machine, or auto"):
        find_device("cuda")


def test_a_stage_takes_the_best_device_where_it_is_told_to(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, layers=2)
    topology = Topology.local(str(model), 1, drafter="ngram").replace(device="auto")
    introduction = load_stage(topology, "stage-1", "incarnation", lambda *_: None)
    assert isinstance(introduction.block, LayerBlock)
    assert introduction.block.device.type == find_device("auto")
    held = block_bytes(Checkpoint(model), 0, introduction.block.end_layer, "float32", "auto")
    assert introduction.block.weight_bytes >= held.weights > 0
