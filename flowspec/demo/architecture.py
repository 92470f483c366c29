"""The two models' shapes. Both are plain ``LlamaForCausalLM``, so any Llama loader can run them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flowspec.demo.tokenizer import BEGIN_ID, END_ID, MAX_LENGTH, VOCAB_SIZE


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


def draft_config(**changes: Any) -> Any:
    """The draft: one layer of the target's width.

    Embedding and head are separate matrices: with a single layer between them, a shared one would have to describe
    a token and its likely successors at once.
    """
    one_layer = {"num_hidden_layers": 1, "num_key_value_heads": 4, "tie_word_embeddings": False}
    return target_config(**{**one_layer, **changes})


def new_model(config: Any, seed: int) -> Any:
    """A freshly initialised model, the same one for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def draft_from(target: Any, seed: int, **changes: Any) -> Any:
    """A fresh draft for ``target`` that starts from the target's embedding, head and last norm."""
    config = target.config
    shared = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
    }
    draft = new_model(draft_config(**{**shared, **changes}), seed)
    with torch.no_grad():
        draft.model.embed_tokens.weight.copy_(target.model.embed_tokens.weight)
        draft.lm_head.weight.copy_(target.lm_head.weight)
        draft.model.norm.weight.copy_(target.model.norm.weight)
    return draft


def parameter_count(model: Any) -> int:
    """The number of distinct parameters: a shared matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
