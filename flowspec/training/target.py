"""The target of a distillation: one forward over a batch of windows, with the hidden states that a draft learns from.

It is the whole model, in one process; nothing here has gradients.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from flowspec.errors import ModelError
from flowspec.model.weights import Checkpoint
from flowspec.training.divergence import LinearHead
from flowspec.wire.messages import FINAL


@dataclass(frozen=True, slots=True)
class Observed:
    """What the target made of a batch of windows."""

    features: torch.Tensor
    """The taps side by side: (batch, length, sum of their widths)."""
    final: torch.Tensor
    """After the final norm, what the LM head reads: (batch, length, hidden)."""


class Target:
    """`model` is a transformers causal LM that names its parts as Llama does; `taps` as in `flowspec.drafting.taps`."""

    def __init__(self, checkpoint: Checkpoint, model: Any, taps: tuple[int, ...], dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.model = model.eval().requires_grad_(False)
        self.head = LinearHead(model.lm_head.weight, model.lm_head.bias)
        self._taps = taps
        self._dtype = dtype

    @classmethod
    def load(cls, checkpoint: Checkpoint, taps: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> Target:
        """All weights of `checkpoint`: float32 on a CPU, `dtype` elsewhere; products run in `dtype` on both.

        ModelError when it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        checkpoint.fetch(0, checkpoint.layer_count)
        logging.disable_progress_bar()
        held = dtype if device.type != "cpu" else torch.promote_types(dtype, torch.float32)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.path), dtype=held, local_files_only=True, trust_remote_code=False
            )
            return cls(checkpoint, model.to(device), taps, dtype)
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            raise ModelError(f"the model {checkpoint.path} cannot be loaded: {error}") from error

    @property
    def device(self) -> torch.device:
        found: torch.device = self.head.weight.device
        return found

    def digest(self) -> str:
        """Of some of its weights: another one after every training."""
        parts = (self.model.model.norm.weight, self.model.model.embed_tokens.weight[:64], self.head.weight[:64])
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def observe(self, tokens: torch.Tensor) -> Observed:
        """Run windows of tokens (batch, length)."""
        inner = self.model.model
        seen: dict[int, torch.Tensor] = {}
        hooks = []
        for tap in {tap for tap in self._taps if tap != FINAL}:
            part = inner.layers[tap] if tap < len(inner.layers) else inner.norm
            hooks.append(part.register_forward_pre_hook(_keeper(seen, tap), with_kwargs=True))
        try:
            with autocast(tokens.device, self._dtype):
                final: torch.Tensor = inner(tokens, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        seen[FINAL] = final
        parts = [seen[tap] for tap in self._taps]
        return Observed(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] if parts else final[..., :0], final)


def _keeper(seen: dict[int, torch.Tensor], tap: int) -> Any:
    def keep(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[tap] = arguments[0] if arguments else named["hidden_states"]

    return keep


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in `dtype`, where that is narrower than float32."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
