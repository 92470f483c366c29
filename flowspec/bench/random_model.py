"""A small random model with a tokenizer, written into a folder: what it says is nonsense, the same each time.

Its weights have a spread that makes the next token depend on the whole context, so that a wrong mask, position or cache
row shows as a wrong token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 352


def write_random_model(
    folder: Path, *, layers: int = 4, hidden: int = 32, context: int = 1024, seed: int = 0, blur: float = 0.0
) -> Path:
    """A Llama of `layers` layers in float64; returns `folder`.

    `blur` is the spread of what is added to the weights: a blurred one drafts for the one that is not, and errs.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            spread = 0.3 if weights.dim() > 1 else 0.1
            noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_(noise * spread + (1.0 if "norm" in name else 0.0))
        if blur:
            for weights in model.parameters():
                weights.add_(torch.randn(weights.shape, generator=generator, dtype=torch.float64), alpha=blur)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(str(folder))
    return folder
