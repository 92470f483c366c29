"""The demo's files in and out: sources as tokens, the target as a folder in Hugging Face format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from flowspec.demo.corpus import Source, Split
from flowspec.training.demo.tokenizer import BEGIN_ID, END_ID
from flowspec.training.storage import FACTS, replacing
from flowspec.training.windows import TokenFile


def encode_sources(tokenizer: Any, sources: Sequence[Source], split: Split) -> list[TokenFile]:
    """The files on one side of the split as tokens, in the order of `sources`; test files join every other epoch."""
    chosen = [source for source in sources if source.split == split]
    encodings = tokenizer.backend_tokenizer.encode_batch([source.text for source in chosen], add_special_tokens=False)
    return [
        TokenFile(np.array([*encoding.ids, END_ID], dtype=np.int32), 2 if source.is_test else 1)
        for source, encoding in zip(chosen, encodings, strict=True)
    ]


def export(model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Write model and tokenizer to `folder`, weights as bfloat16, and `facts` as training.json."""
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16)
    stored.generation_config = GenerationConfig(bos_token_id=BEGIN_ID, eos_token_id=END_ID, pad_token_id=END_ID)
    with replacing(folder) as scratch:
        stored.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model in `folder`, ready to run and not to train."""
    model = LlamaForCausalLM.from_pretrained(str(folder), dtype=dtype)
    return model.eval()
