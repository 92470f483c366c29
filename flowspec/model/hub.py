"""Where a model's name leads: the shipped ones, a directory, or the Hugging Face hub.

Of a hub model only small files are fetched by name; weights come later, file by file, when a stage asks for them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flowspec.errors import ModelError
from flowspec.topology.topology import SYNTHETIC_MODEL


def hub_origin(path: Path) -> tuple[str, str] | None:
    """(hub id, revision) when `path` is a snapshot in the hub's cache: models--org--name/snapshots/revision."""
    folder = path.absolute()
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return None
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name


def resolve_model(name: str) -> Path:
    """The directory of a model: a shipped one (`flowspec.demo.SHIPPED`), else a directory, else a hub id.

    Of a hub model only the small files are fetched here; a stage fetches the weights that it needs.
    """
    from flowspec.demo import SHIPPED

    if name in SHIPPED:
        return SHIPPED[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name == SYNTHETIC_MODEL:
        raise ModelError("the model synthetic has no files: there is nothing of it to read, or to run whole")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"there is no directory {name}", hint='give "demo", a directory in Hugging Face format, or a hub id'
        )
    return download(name, "config.json", small_files=True)


def fetch_header(repository: str, file: str, revision: str) -> dict[str, Any]:
    """The header of a safetensors file, as it stands in the file, and no more. ModelError when it cannot be had."""
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().parse_safetensors_file_metadata(repository, file, revision=revision)
    except Exception as error:
        raise _unfetched(file, repository, error) from error
    return {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": list(tensor.data_offsets)}
        for name, tensor in found.tensors.items()
    }


def download(repository: str, file: str, *, revision: str | None = None, small_files: bool = False) -> Path:
    """Fetch one file, or all small ones, from the hub; returns the snapshot's directory. ModelError when it cannot."""
    import huggingface_hub

    try:
        if small_files:
            patterns = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
            return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision)).parent
    except Exception as error:
        raise _unfetched(file, repository, error) from error


def _unfetched(file: str, repository: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{file} of {repository} is neither here nor can it be fetched: {reason}",
        hint="check the name and the network, or copy the model here and give its directory",
    )
