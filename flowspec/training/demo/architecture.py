"""The target's shape: a plain `LlamaForCausalLM`, so any Llama loader can run it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flowspec.training.demo.tokenizer import BEGIN_ID, END_ID, MAX_LENGTH, VOCAB_SIZE


def target_config(**changes: Any) -> Any:
    """The target: eight layers, about eight million parameters, embedding and head shared."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": MAX_LENGTH,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
    return LlamaConfig(**{**shape, **changes})


def new_model(config: Any, seed: int) -> Any:
    """A freshly initialised model, the same one for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def parameter_count(model: Any) -> int:
    """The number of distinct parameters: a shared matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
