"""The demo model: a small Python-completing target, its one-layer draft, and all that made them.

The package knows where the shipped weights lie and nothing of pipelines. Importing it is cheap: no torch.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).parent / "model"
"""The target in Hugging Face format: config, weights, tokenizer."""

DRAFT_DIR: Final = Path(__file__).parent / "draft"
"""The draft in the same format, with a copy of the target's tokenizer."""
