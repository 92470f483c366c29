"""The folder of a draft head: its JSON, and where each of its tensors lies. Headers are read, weights when asked for.

Only safetensors are read. Names are brought into one spelling: no `model.` in front, `layers.0` for `midlayer`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.drafting.head_settings import OF_HEADS, SIDECAR
from flowspec.errors import ModelError
from flowspec.model import hub
from flowspec.model.weights import StoredTensor, read_header

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLED: Final = "pytorch_model*.bin"
"""Weights as older checkpoints have them; `flowspec.drafting.conversion` makes safetensors of them."""
LEFT_OVER: Final = frozenset({"verifier_lm_head.weight", "verifier_norm.weight"})
"""Copies of the target's weights that speculators may leave in a checkpoint; not the head's."""


class HeadFolder:
    """A head's folder. Making one reads its JSON and headers; ModelError says what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ModelError(f"there is no directory {self.path}", hint="give the folder of a draft head")
        self.config = self._read_json("config.json")
        self.sidecar = self._read_json(SIDECAR) if (self.path / SIDECAR).exists() else {}
        self.tensors: dict[str, StoredTensor] = {}
        """What is stored, by the module's names."""
        self.midlayer = False
        for stored in self._stored():
            self.midlayer |= "midlayer." in stored.name
            name = spelled(stored.name)
            if name in LEFT_OVER or name.endswith("rotary_emb.inv_freq"):
                continue
            if name in self.tensors:
                raise ModelError(f"{self.path}: {stored.name} and {self.tensors[name].name} are the same tensor")
            self.tensors[name] = stored

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, as they are stored. ModelError when their file is damaged."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, torch.Tensor] = {}
        with contextlib.ExitStack() as stack:
            opened: dict[str, Any] = {}
            for name in names:
                stored = self.tensors[name]
                file = self.path / stored.file
                try:
                    if stored.file not in opened:
                        opened[stored.file] = stack.enter_context(safe_open(file, framework="pt"))
                    found[name] = opened[stored.file].get_tensor(stored.name)
                except (SafetensorError, OSError) as error:
                    raise ModelError(f"{file} cannot be read: {error}", hint="it is damaged; fetch it again") from error
        return found

    def _stored(self) -> list[StoredTensor]:
        if (self.path / INDEX).is_file():
            weight_map = self._read_json(INDEX).get("weight_map")
            files = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
            if not files or any(Path(file).name != file for file in files):
                raise ModelError(f"{self.path / INDEX} does not say where the tensors are")
        else:
            files = [WEIGHTS]
        for file in files:
            self._fetch(file)
        return [stored for file in files for stored in read_header(self.path / file).values()]

    def _fetch(self, file: str) -> None:
        if (self.path / file).is_file():
            return
        if pickled := sorted(found.name for found in self.path.glob(PICKLED)):
            raise ModelError(
                f"{self.path} has only {pickled[0]}, no {file}",
                hint=f"such a file can run code when read; convert it once: flowspec convert-head {self.path}",
            )
        origin = hub.hub_origin(self.path)
        if origin is None:
            raise ModelError(f"{self.path / file} is missing", hint="the head is incomplete; fetch it again")
        try:
            hub.download(origin[0], file, revision=origin[1])
        except ModelError as error:
            raise ModelError(
                error.message,
                hint="check the network, or copy the head here and give its directory; if the repository has only "
                f"pytorch_model.bin, fetch and convert it once: flowspec convert-head {origin[0]}",
            ) from error

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{file} is missing", hint="it is no draft head in Hugging Face format") from None
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise ModelError(f"{file} does not hold a JSON object")
        return content


def says_head(folder: Path) -> bool:
    """Whether the JSON in `folder` is that of a draft head; heads of EAGLE-1/2 need not say that they are any."""
    if (folder / SIDECAR).exists():
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and any(config.get(key) is not None for key in OF_HEADS)


def spelled(stored: str) -> str:
    """The module's name of a tensor that a checkpoint calls `stored`."""
    name = stored.removeprefix("model.")
    return "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name
