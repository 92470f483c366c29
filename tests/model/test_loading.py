"""How weights lie in memory changes nothing that is computed, and there is one copy of them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from flowspec.model import loading
from flowspec.model.block import LayerBlock
from tests.model.conftest import WriteCheckpoint
from tests.model.running import Blocks

LAYERS = 3


@pytest.mark.parametrize("tied", [False, True])
def test_weights_by_columns_compute_the_same(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    model = checkpoint(layers=LAYERS, tied=tied, dtype="float32")
    logits = []
    for wins in (False, True):
        monkeypatch.setattr(loading, "_columns_win", lambda weight, wins=wins: wins)
        logits.append(Blocks(model, (0, 1, LAYERS), dtype="float32").run_chain([5, 9, 33, 40, 7, 12]))
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the memory map of a process is read from /proc")
@pytest.mark.parametrize(("first", "end"), [(0, 1), (1, 2), (2, 3), (0, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_by_columns_keep_no_file_mapped_beside_them(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, tied: bool, first: int, end: int
) -> None:
    model = checkpoint(layers=LAYERS, tied=tied, dtype="float32")
    monkeypatch.setattr(loading, "_columns_win", lambda weight: True)
    # Other tests may have loaded the same file, and modules refer to each other in circles.
    gc.collect()
    block = LayerBlock.load(model, first, end)
    assert block.weight_bytes > 0
    assert str(model) not in Path("/proc/self/maps").read_text()
