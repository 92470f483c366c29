"""Small random checkpoints of several model families, with a tokenizer, as they would lie on a disk.

Weights are drawn with a spread that makes the next token depend on the whole context, so that a wrong mask or position
shows as a wrong token. Nothing here is trained and nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FAMILIES: Final = ("llama", "llama3-rope", "qwen2", "qwen3", "mistral", "qwen3-moe", "phi3", "olmo2")
VOCAB_SIZE: Final = 352
TOKENIZER_SIZE: Final = 320
EOS_ID: Final = 1
TEXT: Final = "the quick brown fox jumps over the lazy dog and returns to the den where it sleeps until the sun is up "

CLASSES: Final = {
    "llama": "Llama",
    "llama3-rope": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "qwen3-moe": "Qwen3Moe",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
}


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    layers: int = 3,
    tied: bool = False,
    sliding_window: int | None = None,
    dtype: str = "float64",
    seed: int = 0,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = VOCAB_SIZE,
    context: int = 512,
    shard_bytes: int | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a random model of `family` (see `FAMILIES`) into `folder` and return it.

    `sliding_window` makes odd layers (all of them for mistral) attend to that many positions. `shard_bytes` splits the
    weights into files of about that size with an index. `vocab_size` must exceed 320 when there is a tokenizer: some
    families add a token of their own.
    """
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
        "initializer_range": 0.3,
        **_family_settings(family, layers, sliding_window, context),
    }
    name = CLASSES[family]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(config).to(getattr(torch, dtype))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("norm.weight", "bias")):
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    if shard_bytes is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def _family_settings(family: str, layers: int, window: int | None, context: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if family == "llama3-rope":
        settings["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context // 4,
        }
    if family == "qwen3-moe":
        settings |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    if family == "qwen3":
        settings["head_dim"] = 16
    if window is not None:
        settings["sliding_window"] = window
        if family in ("qwen2", "qwen3"):
            settings["use_sliding_window"] = True
            settings["layer_types"] = ["sliding_attention" if i % 2 else "full_attention" for i in range(layers)]
    elif family in ("mistral", "phi3"):
        settings["sliding_window"] = None
    return settings


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of at most 320 tokens: every text survives encoding and decoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        clean_up_tokenization_spaces=False,
        chat_template="{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    ).save_pretrained(str(folder))
