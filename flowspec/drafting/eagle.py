"""The head of EAGLE-1 and EAGLE-2: one layer over the target's last hidden states (arXiv:2401.15077, 2406.16858).

Both share their weights; EAGLE-2 is a way to grow trees. The head imitates the target's hidden states *after* the final
norm, so the target's LM head reads its output without any norm between.
"""

from __future__ import annotations

import torch
from torch import nn

from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_config import HeadConfig


class EagleHead(DraftHead):
    """`fc` merges embedding and state; the first layer has no norm in front; embedding and LM head are the target's."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return features.to(self.device, self.dtype)

    def inputs(self, embeds: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        merged = self.fc(torch.cat((embeds, states), dim=-1))
        return merged, merged

    def next_states(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def output(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(states.to(self.logit_dtype))
        return logits
