"""The target's own completions of some prompts, written once, and kept on disk batch by batch while they are written.

It refuses to know which prompts those are, and what the completions are trained with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.errors import ConfigurationError
from flowspec.training.sampling import complete
from flowspec.training.storage import CHECKPOINT, load_checkpoint, save_checkpoint
from flowspec.training.windows import TokenFile

BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class OwnText:
    """Completions of `prompts` (count, tokens), `count` more tokens each, by the target with this digest."""

    path: Path
    target_digest: str
    prompts: torch.Tensor
    count: int
    temperature: float
    seed: int

    def files(self, model: Any, say: Callable[[str], None]) -> list[TokenFile]:
        """Prompts with completions: what `path` has of them, and what `model` (on the prompts' device) still writes.

        ConfigurationError when the file has others, which a checkpoint beside it was trained on.
        """
        rows = self._stored(say)
        if len(rows) == len(self.prompts):
            say(f"{len(rows)} completions by the model itself, from {self.path}")
        else:
            begun = f"; {len(rows)} are there" if len(rows) else ""
            say(f"the model writes {len(self.prompts)} completions of {self.count} tokens{begun}")
        while len(rows) < len(self.prompts):
            batch = self.prompts[len(rows) : len(rows) + BATCH]
            seed = self.seed + len(rows) // BATCH
            completed = torch.cat([batch, complete(model, batch, self.count, self.temperature, seed)], dim=1)
            rows = torch.cat([rows, completed.int().cpu()])
            save_checkpoint(self.path, {"asked": self._asked(), "rows": rows})
            say(f"  {len(rows)} of {len(self.prompts)}")
        return [TokenFile(row) for row in rows.numpy()]

    def _asked(self) -> list[Any]:
        """What makes these completions what they are. The prompts too: they may be held out of another training."""
        prompts = hashlib.sha256(self.prompts.cpu().numpy().tobytes()).hexdigest()[:16]
        return [self.target_digest, list(self.prompts.shape), prompts, self.count, self.temperature, self.seed, BATCH]

    def _stored(self, say: Callable[[str], None]) -> torch.Tensor:
        nothing = torch.empty(0, self.prompts.size(1) + self.count, dtype=torch.int32)
        stored = load_checkpoint(self.path)
        if stored is None:
            return nothing
        if stored.get("asked") == self._asked():
            rows: torch.Tensor = stored["rows"]
            return rows
        if (self.path.parent / CHECKPOINT).exists():
            raise ConfigurationError(
                f"{self.path} has completions of other text, or made with other settings, and {CHECKPOINT} learned on "
                "them",
                hint="train on with the same text and settings, or begin again in another folder",
            )
        say(f"{self.path} has completions of other text, or made with other settings: they are replaced")
        return nothing
