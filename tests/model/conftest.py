"""Checkpoints on disk, each written once per test run, and the whole models that are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import write_checkpoint

WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> WriteCheckpoint:
    """`checkpoint(family, **settings)` as `write_checkpoint`, in a directory of its own that nobody changes."""
    written: dict[tuple[Any, ...], Path] = {}

    def write(family: str = "llama", **settings: Any) -> Path:
        key = (family, *sorted(settings.items()))
        if key not in written:
            folder = tmp_path_factory.mktemp("model") / "checkpoint"
            written[key] = write_checkpoint(folder, family, **{"tokenizer": False, **settings})
        return written[key]

    return write


@torch.inference_mode()
def oracle_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, vocab) of the whole model in float64, as transformers alone computes them."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="sdpa", experts_implementation="eager"
    )
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits
