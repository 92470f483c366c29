"""A head's `pytorch_model.bin` as safetensors, once and on request: the only place where flowspec opens such a file.

It is read with `weights_only=True`: what is no tensor in it is refused, not run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from flowspec.drafting.head_folder import PICKLED, WEIGHTS, spelled
from flowspec.drafting.head_settings import kind_of
from flowspec.errors import ModelError
from flowspec.model import hub
from flowspec.output import unwritable


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done."""

    sources: tuple[Path, ...]
    written: Path
    tensors: int
    size: int  # bytes of the file written
    kind: str  # "eagle" | "eagle3", by the tensors' names


def convert_head(folder: Path) -> Conversion:
    """Write `model.safetensors` beside the `pytorch_model*.bin` of `folder`: same names, shapes and dtypes.

    ModelError when there is nothing to convert, when the result is there already, or when a file holds anything but
    tensors, or such as safetensors has no form for. ConfigurationError when the disk does not take the result. Nothing
    is left behind after an error.
    """
    from safetensors.torch import save_file

    written = folder / WEIGHTS
    if written.exists():
        raise ModelError(f"{written} is there already", hint="there is nothing to convert; delete it to do so again")
    sources = _sources(folder)
    tensors: dict[str, torch.Tensor] = {}
    for source in sources:
        for name, tensor in _read(source).items():
            if name in tensors:
                raise ModelError(f"{source}: {name} is in another file, too")
            # safetensors wants every tensor in memory of its own.
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    part = folder / f"{WEIGHTS}.part"
    with unwritable(written, hint="free some space, or copy the folder to where it may be written to"):
        try:
            save_file(tensors, part, metadata={"format": "pt"})
            os.replace(part, written)
        finally:
            part.unlink(missing_ok=True)
    kind = kind_of(frozenset(map(spelled, tensors)))
    return Conversion(sources, written, len(tensors), written.stat().st_size, kind)


def _sources(folder: Path) -> tuple[Path, ...]:
    """The pickled weights in `folder`; where it is a repository of the hub and has none yet, they are fetched."""
    origin = hub.hub_origin(folder)
    if origin is not None and not any(folder.glob(PICKLED)):
        hub.download(origin[0], "pytorch_model.bin", revision=origin[1])
    found = tuple(sorted(folder.glob(PICKLED)))
    if not found:
        raise ModelError(f"{folder} has no pytorch_model.bin", hint="give the folder that holds the head's files")
    return found


def _read(source: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is no archive of tensors provokes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{source} holds more than tensors or is damaged, and was not read: {reason}",
            hint="fetch it again; if that changes nothing, do not use it unless you know who made it",
        ) from error
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{source} holds no tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"{source}: {name!r} is no tensor but a {type(value).__name__}")
        if not _is_plain(value):
            raise ModelError(
                f"{source}: {name} is no dense tensor of plain numbers ({value.layout}, {value.dtype}, {value.device})",
                hint="save it again as one; a sparse tensor has `to_dense`",
            )
    return found


def _is_plain(value: torch.Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_nested
    return dense and value.device.type == "cpu" and not (value.is_quantized or value.is_complex())
