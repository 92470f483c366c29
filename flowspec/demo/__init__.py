"""The demo's models: a small Python-completing target, its drafts, and what its text is.

The package knows where the shipped weights lie and which sources they learned from; `flowspec.training.demo` makes
them. Importing it is cheap: no torch.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).parent / "model"
"""The target in Hugging Face format: config, weights, tokenizer."""

DRAFT_DIR: Final = Path(__file__).parent / "draft"
"""The causal-lm draft in the same format, with a copy of the target's tokenizer."""

EAGLE_DIR: Final = Path(__file__).parent / "eagle"
"""The target's EAGLE head."""

EAGLE3_DIR: Final = Path(__file__).parent / "eagle3"
"""The target's EAGLE-3 head."""

EAGLE3_DEEP_DIR: Final = Path(__file__).parent / "eagle3-deep"
"""One with three layers, that guesses better and takes longer: for a draft node with a processor of its own."""

SHIPPED: Final = {
    "demo": MODEL_DIR,
    "demo-draft": DRAFT_DIR,
    "demo-eagle": EAGLE_DIR,
    "demo-eagle3": EAGLE3_DIR,
    "demo-eagle3-deep": EAGLE3_DEEP_DIR,
}
"""Name of a model -> its folder."""
