"""Checkpoints of a training and finished folders, both replaced by renaming, so that no reader sees half a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.errors import ConfigurationError
from flowspec.output import unwritable

CHECKPOINT: Final = "training.pt"
FACTS: Final = "training.json"
OWN_TEXT: Final = "own-text.pt"
HALF: Final = ".part"
"""Ends the name of what is being written. What a killed process left of it, the next one writes over."""
SCRATCH: Final = f"draft{HALF}"
UNFINISHED: Final = {SCRATCH, *(str(Path(name).with_suffix(HALF)) for name in (CHECKPOINT, OWN_TEXT))}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` by way of a neighbour. ConfigurationError when the disk does not take it."""
    neighbour = path.with_suffix(HALF)
    with unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A file that torch opens by itself fails without the system's reason.
            with neighbour.open("wb") as file:
                torch.save(state, file)
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
            hint="it is damaged, or of another program; begin again in another folder",
        ) from error
    return state


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files take their places in `folder` when the block ends well, weights last.

    Shapes do not change between versions of one draft, so every mix of old and new files still loads.
    """
    scratch = folder / SCRATCH
    with unwritable(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            for part in sorted(scratch.iterdir(), key=lambda part: part.suffix == ".safetensors"):
                part.chmod(0o644)
                os.replace(part, folder / part.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raise ConfigurationError when nothing could be written into `folder`, made if need be; nothing is left there."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    with unwritable(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        finally:
            for each in missing:
                with contextlib.suppress(OSError):
                    each.rmdir()
