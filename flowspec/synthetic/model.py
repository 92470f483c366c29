"""The synthetic model as a node sees it before it loads anything: layers, sizes, fingerprint. It has no files.

Answers what `flowspec.model.weights.Checkpoint` answers of a checkpoint on disk.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Final

from flowspec.errors import ModelError
from flowspec.synthetic.text import VOCABULARY
from flowspec.synthetic.words import WordTokenizer
from flowspec.topology import Topology
from flowspec.topology.profiles import load_profile

STAGE_LAYERS: Final = 8
"""Of a stage, where neither its entry nor a profile says."""

CONTEXT: Final = 131_072


class SyntheticModel:
    """Made of the topology alone, the same on every device that has the same topology."""

    hidden_size: Final = 1
    """What travels is a small tensor; what it stands for is charged on emulated links by `bytes_per_token`."""
    vocab_size: Final = VOCABULARY
    context_limit: Final = CONTEXT
    eos_token_ids: Final[frozenset[int]] = frozenset()
    path: Final = None

    def __init__(self, topology: Topology) -> None:
        chosen = topology.synthetic
        self.seed = chosen.seed if chosen is not None else 0
        self.tokenizer = WordTokenizer()
        written = topology.tail.layers
        each = load_profile(topology.profile).stage.layers if topology.profile is not None else STAGE_LAYERS
        even = each * len(topology.stages)
        self.layer_count = even if written is None or written == "auto" else written[1]

    def split_layers(self, stages: int) -> tuple[range, ...]:
        """Contiguous ranges of layers, as even as can be."""
        if stages > self.layer_count:
            raise ModelError(f"{self.layer_count} layers cannot be shared among {stages} stages")
        edges = [self.layer_count * index // stages for index in range(stages + 1)]
        return tuple(range(first, end) for first, end in pairwise(edges))

    def fingerprint(self) -> str:
        """Equal on all devices with this text and these layers."""
        return hashlib.sha256(f"synthetic {self.seed} {self.layer_count}".encode()).hexdigest()[:32]

    def tokenizer_hash(self) -> str:
        return hashlib.sha256(b"synthetic words").hexdigest()[:32]
