"""Draft heads written down a second time, straight from their definitions and without any code of flowspec.

One row is computed at a time, over its whole path from the start: no cache, no mask, no batch, no packed heads. Weights
come as stored tensors under the names of EAGLE's own files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Plain:
    """A head by its definition. `layers` are the prefixes of its layers' names."""

    weights: Weights
    embedding: torch.Tensor
    lm_head: torch.Tensor
    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    eps: float = 1e-6
    theta: float = 10000.0
    linear: float = 1.0  # linear RoPE scaling
    layers: tuple[str, ...] = ("layers.0.",)
    normed_residual: bool = False
    normed_output: bool = False
    taps: int = 1

    # ---- pieces

    def linear_map(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = self.weights[f"{name}.weight"] @ x
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean() + self.eps) * self.weights[f"{name}.weight"]

    def turn(self, vector: torch.Tensor, position: int) -> torch.Tensor:
        """RoPE of one head's vector; the angles are float32, as everywhere."""
        half = self.head_dim // 2
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        angles = torch.tensor(float(position), dtype=torch.float32) * ((1.0 / self.theta**exponents) / self.linear)
        turned = vector.clone()
        for pair in range(half):
            cosine, sine = float(angles[pair].cos()), float(angles[pair].sin())
            a, b = vector[pair], vector[pair + half]
            turned[pair] = a * cosine - b * sine
            turned[pair + half] = b * cosine + a * sine
        return turned

    def heads_of(self, prefix: str, part: str, x: torch.Tensor, position: int | None) -> list[torch.Tensor]:
        found = list(self.linear_map(f"{prefix}self_attn.{part}_proj", x).split(self.head_dim))
        if f"{prefix}self_attn.{part}_norm.weight" in self.weights:
            found = [self.norm(f"{prefix}self_attn.{part}_norm", head) for head in found]
        return found if position is None else [self.turn(head, position) for head in found]

    # ---- the whole

    def project(self, features: torch.Tensor) -> torch.Tensor:
        if self.kind == "eagle":
            return features
        parts = list(features.chunk(self.taps))
        if "fc_norm.0.weight" in self.weights:
            parts = [self.norm(f"fc_norm.{index}", part) for index, part in enumerate(parts)]
        joined = torch.cat(parts)
        if "input_norm.weight" in self.weights:
            joined = self.norm("input_norm", joined)
        return self.linear_map("fc", joined)

    def step(self, tokens: list[int], states: list[torch.Tensor]) -> torch.Tensor:
        """The next state of the last row of a path of rows with these tokens and states, at positions 0, 1, ..."""
        residuals: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []
        first = self.layers[0]
        for token, state in zip(tokens, states, strict=True):
            embedded = self.embedding[token]
            if self.kind == "eagle":
                merged = self.linear_map("fc", torch.cat((embedded, state)))
                residuals.append(merged)
                inputs.append(merged)
            else:
                normed = self.norm(f"{first}hidden_norm", state)
                residuals.append(normed if self.normed_residual else state)
                inputs.append(torch.cat((self.norm(f"{first}input_layernorm", embedded), normed)))
        for number, prefix in enumerate(self.layers):
            if number:
                residuals = list(outputs)
                inputs = [self.norm(f"{prefix}input_layernorm", row) for row in residuals]
            keys = [self.heads_of(prefix, "k", row, at) for at, row in enumerate(inputs)]
            values = [self.heads_of(prefix, "v", row, None) for row in inputs]
            outputs = []
            for at, row in enumerate(inputs):
                attended = []
                for head, query in enumerate(self.heads_of(prefix, "q", row, at)):
                    shared = head // (self.heads // self.kv_heads)
                    scores = torch.stack([query @ keys[seen][shared] for seen in range(at + 1)])
                    weights = (scores / math.sqrt(self.head_dim)).softmax(0)
                    attended.append(sum(weights[seen] * values[seen][shared] for seen in range(at + 1)))
                middle = residuals[at] + self.linear_map(f"{prefix}self_attn.o_proj", torch.cat(attended))
                x = self.norm(f"{prefix}post_attention_layernorm", middle)
                gate = self.linear_map(f"{prefix}mlp.gate_proj", x)
                gated = gate * torch.sigmoid(gate) * self.linear_map(f"{prefix}mlp.up_proj", x)
                outputs.append(middle + self.linear_map(f"{prefix}mlp.down_proj", gated))
        return self.norm("norm", outputs[-1]) if self.normed_output else outputs[-1]

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        if self.kind == "eagle3" and not self.normed_output:
            state = self.norm("norm", state)
        return self.lm_head @ state
