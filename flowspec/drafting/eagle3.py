"""The head of EAGLE-3: hidden states of the target from three depths, a draft vocabulary, an LM head of its own.

After arXiv:2503.01840. The options that EAGLE 3.1 and vLLM's speculators added (norms before and inside the fusion of
the taps, the normed output as the next state) are conventions of the checkpoint; see `head_config`.
"""

from __future__ import annotations

import torch
from torch import nn

from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_layer import Norm


class Eagle3Head(DraftHead):
    """`fc` merges the taps into a state; the first layer's attention reads embedding and state side by side."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = Norm(self.feature_size, eps) if config.norm_before_fc else None
        self.fc_norm = None
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(Norm(config.target_hidden_size, eps) for _ in config.taps)
        self.fc = nn.Linear(self.feature_size, size, bias=config.fc_bias)
        self.norm = Norm(size, eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(self.device, self.dtype)
        if self.fc_norm is not None:
            parts = features.split(self.config.target_hidden_size, dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        if self.input_norm is not None:
            features = self.input_norm(features)
        states: torch.Tensor = self.fc(features)
        return states

    def inputs(self, embeds: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.stack[0]
        assert first.hidden_norm is not None
        assert first.input_layernorm is not None
        normed = first.hidden_norm(states)
        residual = normed if self.config.norm_before_residual else states
        return residual, torch.cat((first.input_layernorm(embeds), normed), dim=-1)

    def next_states(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._normed(hidden).to(self.dtype) if self.config.norm_output else hidden

    def output(self, states: torch.Tensor) -> torch.Tensor:
        normed = states.to(self.logit_dtype) if self.config.norm_output else self._normed(states)
        logits: torch.Tensor = self.lm_head(normed)
        return logits

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(hidden.to(self.logit_dtype))
        return normed
