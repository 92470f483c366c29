"""A small causal language model as student: some layers of the target's kind between its embedding and LM head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from flowspec.drafting.causal_lm import CausalLmDrafter
from flowspec.drafting.drafter import Drafter
from flowspec.errors import ConfigurationError
from flowspec.model.weights import Checkpoint
from flowspec.training.divergence import LinearHead
from flowspec.training.student import take_weights
from flowspec.training.target import Observed


class SmallLmStudent:
    """Implements `Student` for a transformers causal LM; `tokenizer` is the target's, exported with it."""

    steps = 1
    target_tokens: torch.Tensor | None = None
    taps: tuple[int, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, vocab_size: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    @property
    def module(self) -> torch.nn.Module:
        found: torch.nn.Module = self._model
        return found

    @property
    def head(self) -> LinearHead:
        return LinearHead(self._model.lm_head.weight, self._model.lm_head.bias)

    @property
    def identity(self) -> dict[str, Any]:
        return {}

    def begin(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        Checkpoint(folder)  # says what is wrong with a folder that holds no model
        found = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        take_weights(self.module, found, folder)

    def states(self, tokens: torch.Tensor, observed: Observed) -> torch.Tensor:
        hidden: torch.Tensor = self._model.model(tokens, use_cache=False).last_hidden_state
        return hidden[None]

    def extra_loss(self, states: torch.Tensor, observed: Observed, weights: torch.Tensor) -> torch.Tensor | None:
        return None

    def export(self, folder: Path, facts: dict[str, Any]) -> None:
        """In Hugging Face format, weights as bfloat16, with the target's tokenizer."""
        stored = type(self._model)(self._model.config).to(torch.bfloat16)
        stored.load_state_dict(self._model.state_dict())
        stored.generation_config = self._model.generation_config
        stored.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def drafter(self, folder: Path, device: str) -> Drafter:
        checkpoint = Checkpoint(folder)
        return CausalLmDrafter.load(checkpoint, dtype="float32", device=device, vocab_size=self._vocab_size)


def build_small_lm(
    target: Any, tokenizer: Any, *, layers: int, copied: bool, seed: int, device: torch.device
) -> SmallLmStudent:
    """A model of `layers` layers with embedding, last norm and LM head of the transformers model `target`.

    `copied`: its layers start as the target's first ones, else as new ones, with as many heads of keys as of queries.
    Embedding and head are separate matrices: with few layers between them, a shared one would have to describe a token
    and its likely successors at once.
    """
    config = copy.deepcopy(target.config)
    if not 1 <= layers <= config.num_hidden_layers:
        raise ConfigurationError(f"--layers is {layers}, the model itself has {config.num_hidden_layers}")
    config.num_hidden_layers = layers
    config.tie_word_embeddings = False
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    if not copied:
        config.num_key_value_heads = config.num_attention_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(target)(config).float()
    with torch.no_grad():
        for mine, theirs in (
            (model.model.embed_tokens, target.model.embed_tokens),
            (model.model.norm, target.model.norm),
            (model.lm_head, target.lm_head),
            *(zip(model.model.layers, target.model.layers[:layers], strict=True) if copied else ()),
        ):
            mine.load_state_dict({name: value.float().cpu() for name, value in theirs.state_dict().items()})
    model.generation_config = target.generation_config
    return SmallLmStudent(model.to(device), tokenizer, config.vocab_size)
