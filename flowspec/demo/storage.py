"""Checkpoints and shipped folders, both replaced in one rename so that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from flowspec.demo.tokenizer import BEGIN_ID, END_ID


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` by way of a neighbour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_suffix(".part")
    torch.save(state, neighbour)
    os.replace(neighbour, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in ``path``, or nothing where there is no checkpoint yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def export(model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Write model and tokenizer to ``folder`` in Hugging Face format, weights as bfloat16, and ``training.json``.

    Files are renamed into place one by one, weights last: the shapes do not change between versions, so every mix
    of old and new files still loads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16)
    stored.generation_config = GenerationConfig(bos_token_id=BEGIN_ID, eos_token_id=END_ID, pad_token_id=END_ID)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        stored.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (Path(scratch) / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
        for part in sorted(Path(scratch).iterdir(), key=lambda part: part.suffix == ".safetensors"):
            part.chmod(0o644)
            os.replace(part, folder / part.name)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model in ``folder``, ready to run and not to train."""
    model = LlamaForCausalLM.from_pretrained(str(folder), dtype=dtype)
    return model.eval()
