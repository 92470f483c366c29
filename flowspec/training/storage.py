"""Checkpoints of a training and finished folders, both replaced by renaming, so that no reader sees half a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.errors import ConfigurationError

CHECKPOINT: Final = "training.pt"
FACTS: Final = "training.json"
OWN_TEXT: Final = "own-text.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` by way of a neighbour. ConfigurationError when the disk does not take it."""
    neighbour = path.with_suffix(".part")
    with unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(state, neighbour)
            os.replace(neighbour, path)
        finally:
            neighbour.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in `path`, or nothing where there is no checkpoint yet. ConfigurationError when it is damaged."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip raise what they like
        raise ConfigurationError(
            f"the checkpoint {path} cannot be read: {type(error).__name__}",
            hint="it is damaged, or of another program; remove it to begin again",
        ) from error
    return state


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files take their places in `folder` when the block ends well, weights last.

    Shapes do not change between versions of one draft, so every mix of old and new files still loads.
    """
    with unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            yield Path(scratch)
            for part in sorted(Path(scratch).iterdir(), key=lambda part: part.suffix == ".safetensors"):
                part.chmod(0o644)
                os.replace(part, folder / part.name)


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Failures to write below `path`, told as a ConfigurationError."""
    try:
        yield
    except Exception as error:
        # torch and safetensors hide the system's error in one of their own.
        known = isinstance(error, OSError) or "writ" in str(error) or "space" in str(error)
        if not known or isinstance(error, ConfigurationError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise ConfigurationError(
            f"{path} cannot be written: {reason}", hint="free some space or choose another folder"
        ) from error
