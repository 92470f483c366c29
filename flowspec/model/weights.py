"""A checkpoint on disk: its config, where each tensor lies, what a stage needs of it, whether two devices agree on it.

Only safetensors are read, headers first, and a file only when something in it is asked for. The module knows nothing
of sessions, and never runs code that comes with a checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flowspec.errors import ConfigurationError, ModelError
from flowspec.model import hub, layout, rotary
from flowspec.model.hub import resolve_model
from flowspec.output import OutputFile

__all__ = ["Checkpoint", "StoredTensor", "read_header", "resolve_model"]

SUPPORTED: Final = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "olmo2")
"""`model_type` of the architectures whose split into stages is tested against the whole model."""

MAX_HEADER_BYTES: Final = 100_000_000
HEADER_SUFFIX: Final = "header.json"
"""Of the name under which the header of a file that is not here lies in the folder."""

EMBEDDING: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm."
HEAD: Final = "lm_head.weight"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
SIZES: Final = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Of a config, all of them 1 or more."""
PLAIN_DTYPES: Final = ("F64", "F32", "BF16", "F16")
"""As what weights may be stored: numbers that mean themselves, not steps of a scale."""
UNQUANTISED: Final = "take the model that is not quantised, with weights in bfloat16, float16 or float32"
VOLATILE: Final = frozenset({"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    name: str
    file: str
    dtype: str  # as in the header: "F32", "BF16", ...
    shape: tuple[int, ...]
    size: int  # bytes


class Checkpoint:
    """A Hugging Face causal LM in `path`. Making one reads config and index only; ModelError says what is wrong.

    `context`: most tokens of prompt and output that its pipeline shall take; None for what the model does at its best.
    """

    def __init__(self, path: Path, context: int | None = None) -> None:
        self.path = Path(path)
        self._context = context
        if not self.path.is_dir():
            raise ModelError(
                f"there is no directory {self.path}",
                hint="give the path of a model in Hugging Face format, or a hub id",
            )
        self.raw_config = self._read_json("config.json", "it is not a model in Hugging Face format")
        self.model_type = str(self.raw_config.get("model_type"))
        if self.model_type not in SUPPORTED:
            raise ModelError(
                f"{self.path / 'config.json'}: the architecture {self.model_type!r} is not supported",
                hint=f"supported are {', '.join(SUPPORTED)}",
            )
        self._refuse_quantised()
        self._headers: dict[str, dict[str, StoredTensor]] = {}
        self.files = self._index()
        """Tensor name -> file name."""

    # ---- config

    @functools.cached_property
    def config(self) -> Any:
        """The config as transformers reads it, with the frequencies that this context has (see `rotary`)."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(str(self.path), trust_remote_code=False, local_files_only=True)
            rotary.fix_frequencies(config, self._context)
        except Exception as error:
            raise ModelError(
                f"{self.path / 'config.json'} cannot be read: {error}",
                hint="it was damaged or written for another version of transformers; fetch it again",
            ) from error
        self._check_config(config)
        return config

    def _check_config(self, config: Any) -> None:
        """What transformers would let pass, and fail at later in words of its own."""
        from transformers.activations import ACT2FN

        file, hint = self.path / "config.json", "it was damaged, or written for another program; fetch it again"
        for name in SIZES:
            if getattr(config, name) < 1:
                raise ModelError(f"{file}: {name} is {getattr(config, name)}", hint=hint)
        if config.hidden_act not in ACT2FN:
            raise ModelError(f"{file}: hidden_act is {config.hidden_act!r}, which is not known", hint=hint)
        kind = (config.rope_parameters or {}).get("rope_type", "default")
        if kind not in rotary.KINDS:
            raise ModelError(
                f"{file}: positions of the kind {kind!r} (rope_type) are not supported",
                hint=f"supported are {', '.join(rotary.KINDS)}",
            )

    def _refuse_quantised(self) -> None:
        for key in ("quantization_config", "compression_config"):
            if found := self.raw_config.get(key):
                method = found.get("quant_method", key) if isinstance(found, dict) else key
                raise ModelError(
                    f"{self.path / 'config.json'}: the weights are quantised ({method}), which is not supported",
                    hint=UNQUANTISED,
                )

    @property
    def layer_count(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def tied(self) -> bool:
        """The LM head is the embedding: the config says so, and no other is stored.

        Where one is stored all the same, it is what counts: equal to the embedding it changes nothing, and transformers
        does not tie the two when they differ.
        """
        return bool(getattr(self.config, "tie_word_embeddings", False)) and HEAD not in self.files

    @property
    def context_limit(self) -> int:
        """Most tokens of prompt and output that a pipeline of this context takes."""
        return rotary.context_limit(self.config, self._context)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """From generation_config.json where it names them, else from the config; empty when neither does."""
        found = None
        if (self.path / "generation_config.json").is_file():
            found = self._read_json("generation_config.json", "it is damaged").get("eos_token_id")
        if found is None:
            found = getattr(self.config, "eos_token_id", None)
        if found is None:
            return frozenset()
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(token, int) for token in ids):
            raise ModelError(
                f"{self.path}: eos_token_id is {found!r}, neither a token id nor a list of them", hint="fetch it again"
            )
        return frozenset(ids)

    def fingerprint(self) -> str:
        """Hash of the config and of the names and total size of all tensors: equal on all devices with this model.

        Shapes follow from the config, and are checked when tensors are read; so a device need not have every file. The
        context counts where frequencies depend on it: keys and queries must not be turned by different ones.
        """
        essential = {key: value for key, value in self.raw_config.items() if key not in VOLATILE}
        if rotary.has_long_factors(self.config, self._context):
            essential["flowspec: factors"] = "long"
        text = json.dumps([essential, sorted(self.files), self._total_bytes()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer's vocabulary files; empty when there are none."""
        digest = hashlib.sha256()
        present = [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        # tokenizer.json holds everything; the older files are read only where it is missing.
        for file in present[:1] if present and present[0].name == "tokenizer.json" else present:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:32] if present else ""

    # ---- tensors

    def names(self, first: int, end: int) -> list[str]:
        """Names of the tensors that a stage with layers [first, end) reads, in the file's order."""
        return [name for name in self.files if self._belongs(name, first, end)]

    def _belongs(self, name: str, first: int, end: int) -> bool:
        layer = layout.LAYER.match(name)
        if layer is not None:
            return first <= int(layer.group(1)) < end
        tail = end == self.layer_count
        if name == EMBEDDING:
            return first == 0 or (tail and self.tied)
        return tail and (name.startswith(NORM) or name == HEAD)

    def stored_dtype(self, first: int, end: int) -> str | None:
        """What all tensors of layers [first, end) are stored in, as files call it ("BF16", ...); None if they differ.

        As the config says where files are missing.
        """
        names = self.names(first, end)
        if not all((self.path / self.files[name]).is_file() for name in names):
            said = self.raw_config.get("dtype") or self.raw_config.get("torch_dtype")
            return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(str(said))
        found = {self.stored(name).dtype for name in names}
        return found.pop() if len(found) == 1 else None

    def needed_files(self, first: int, end: int) -> tuple[str, ...]:
        """Names of the files that a stage with layers [first, end) opens."""
        return tuple(sorted({self.files[name] for name in self.names(first, end)}))

    def stored(self, name: str) -> StoredTensor:
        """What the header of its file says about a tensor; ModelError when it is missing or the file is damaged."""
        file = self.files.get(name)
        if file is None:
            raise ModelError(
                f"{self.path}: the tensor {name} is missing", hint="the checkpoint is incomplete; fetch it again"
            )
        if file not in self._headers:
            self._headers[file] = read_header(self.path / file)
        found = self._headers[file].get(name)
        if found is None:
            raise ModelError(
                f"{self.path / file}: the tensor {name} is missing, though the index names it",
                hint="index and files are of different checkpoints; fetch them again",
            )
        return found

    @functools.cached_property
    def parameters(self) -> layout.Parameters:
        """How many parameters each part has; read from the headers where all files are here, else from the config."""
        return layout.count_parameters(self)

    def layer_parameters(self) -> list[int]:
        """Parameters of each layer."""
        return list(self.parameters.layers)

    def split_layers(self, stages: int) -> tuple[range, ...]:
        """Contiguous layers for each of `stages`: the largest stage is as small as can be, LM head included.

        The embedding counts nothing, since a look-up takes no time. ModelError when there are more stages than layers.
        """
        return layout.split(self.parameters, stages)

    def fetch(self, first: int, end: int) -> None:
        """Make sure that the files of layers [first, end) are here; fetches them where the checkpoint is of the hub."""
        for file in self.needed_files(first, end):
            if (self.path / file).is_file():
                continue
            origin = hub.hub_origin(self.path)
            if origin is None:
                raise ModelError(
                    f"{self.path / file} is missing, though the index names it",
                    hint="the checkpoint is incomplete; fetch it again",
                )
            hub.download(origin[0], file, revision=origin[1])

    def _index(self) -> dict[str, str]:
        if (self.path / "model.safetensors.index.json").is_file():
            weight_map = self._read_json("model.safetensors.index.json", "it is damaged").get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{self.path / 'model.safetensors.index.json'} has no weight_map")
            for file in weight_map.values():
                if Path(str(file)).name != file:
                    raise ModelError(f"{self.path / 'model.safetensors.index.json'} points outside: {file!r}")
            return {str(name): str(file) for name, file in weight_map.items()}
        single = self.path / "model.safetensors"
        if not single.is_file():
            binary = sorted(file.name for file in self.path.glob("*.bin"))
            if binary:
                raise ModelError(
                    f"{self.path} has only {', '.join(binary[:3])}, no safetensors",
                    hint="such files can run code when read; convert the model to safetensors first",
                )
            origin = hub.hub_origin(self.path)
            if origin is None:
                raise ModelError(
                    f"{self.path} has neither model.safetensors nor model.safetensors.index.json",
                    hint="the checkpoint is incomplete; fetch it again",
                )
            self._headers["model.safetensors"] = self._fetched_header(*origin)
        else:
            self._headers["model.safetensors"] = read_header(single)
        return dict.fromkeys(self._headers["model.safetensors"], "model.safetensors")

    def _fetched_header(self, repository: str, revision: str) -> dict[str, StoredTensor]:
        """Of the one file of a hub model, which only those need who hold layers. Kept, for starts without a network."""
        kept = self.path / f"model.safetensors.{HEADER_SUFFIX}"
        if not kept.is_file():
            entries = hub.fetch_header(repository, "model.safetensors", revision)
            with (
                contextlib.suppress(ConfigurationError),  # a cache that may only be read
                OutputFile(kept, "the header of the weights").replaced() as stream,
            ):
                json.dump(entries, stream)
            return _tensors(entries, "model.safetensors")
        try:
            return _tensors(json.loads(kept.read_text(encoding="utf-8")), "model.safetensors")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{kept} cannot be read: {error}", hint="remove it; it is fetched again") from error

    def _total_bytes(self) -> int:
        if "model.safetensors" in self._headers:
            return sum(tensor.size for tensor in self._headers["model.safetensors"].values())
        metadata = self._read_json("model.safetensors.index.json", "it is damaged").get("metadata") or {}
        return int(metadata.get("total_size", 0))

    def _read_json(self, name: str, otherwise: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise ModelError(f"{file} is missing", hint=otherwise)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not valid JSON: {error}", hint="fetch it again") from error
        if not isinstance(content, dict):
            raise ModelError(f"{file} does not hold a JSON object", hint="fetch it again")
        return content


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, without reading them. ModelError when the file is not whole."""
    damaged = "the file is damaged or was not copied to its end; fetch it again"
    if not file.is_file():
        raise ModelError(f"{file} is missing", hint=damaged)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            entries = json.loads(stream.read(length))
        return _tensors(entries, file.name, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=damaged) from error


def _tensors(entries: dict[str, Any], file: str, room: float = math.inf) -> dict[str, StoredTensor]:
    """What a header says, of a file with `room` bytes behind it; raises what odd values raise."""
    tensors = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= room:
            raise ValueError(f"tensor {name} ends after the end of the file")
        tensors[name] = StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), end - start)
    return tensors
