"""Weights from files into modules: only the tensors that a stage owns, each read once, in the wanted dtype.

It builds modules and runs none of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.nn import functional

from flowspec.errors import ModelError
from flowspec.model import attention
from flowspec.model.weights import EMBEDDING, HEAD, NORM, PLAIN_DTYPES, UNQUANTISED, Checkpoint

Progress = Callable[[int, int], None]

OTHER_MODEL: Final = "the checkpoint is incomplete or of another architecture than its config says; fetch it again"

STORED_HALVES: Final = {"BF16": torch.bfloat16, "F16": torch.float16}
"""What has 16 bits, as files call it."""


class LanguageHead(torch.nn.Module):
    """Final norm and LM head, at least in float32: argmax ties are frequent in half precision."""

    def __init__(
        self,
        reader: TensorReader,
        norm: torch.nn.Module,
        shared: torch.Tensor | None,
        dtype: torch.dtype,
        narrow: bool,
    ) -> None:
        """`narrow`: the linear layer's weight may come in 16 bits, as it is stored; it is widened or packed later."""
        super().__init__()
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        for name, parameter in list(norm.named_parameters()):
            setattr(norm, name, reader.parameter(NORM + name, tuple(parameter.shape), self.dtype))
        self.norm = norm
        if shared is not None and shared.dtype == self.dtype:
            # An embedding is looked up row by row, so a shared weight is not arranged.
            self.shared: torch.Tensor | None = shared
            return
        self.shared = None
        checkpoint = reader.checkpoint
        shape = checkpoint.vocab_size, checkpoint.hidden_size
        self.linear = torch.nn.Linear(1, 1, bias=False, device="meta")
        name = EMBEDDING if checkpoint.tied else HEAD
        stored = STORED_HALVES.get(checkpoint.stored(name).dtype) if narrow else None
        self.linear.weight = reader.parameter(name, shape, stored or self.dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden.to(self.dtype))
        if self.shared is not None:
            return functional.linear(normed, self.shared)
        logits: torch.Tensor = self.linear(normed)
        return logits


class LazyTensor:
    """A tensor that is read when it is indexed, as transformers' loader does; reports what was read."""

    def __init__(self, reader: TensorReader, name: str) -> None:
        self._reader = reader
        self._name = name
        stored = reader.checkpoint.stored(name)
        self._dtype, self._shape = stored.dtype, list(stored.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._reader.read(self._name)[index]

    def get_dtype(self) -> str:
        return self._dtype

    def get_shape(self) -> list[int]:
        return self._shape


class TensorReader:
    """Opens the safetensors files of a stage, each once, and closes them."""

    def __init__(self, checkpoint: Checkpoint, first: int, end: int, progress: Progress | None) -> None:
        self.checkpoint = checkpoint
        self.names = checkpoint.names(first, end)
        self._progress = progress
        stored = [checkpoint.stored(name) for name in self.names]
        for tensor in stored:
            if tensor.dtype not in PLAIN_DTYPES:
                raise ModelError(
                    f"{checkpoint.path / tensor.file}: {tensor.name} is stored as {tensor.dtype}, not as one of "
                    f"{', '.join(PLAIN_DTYPES)}",
                    hint=UNQUANTISED,
                )
        self._total = sum(tensor.size for tensor in stored)
        self._read: dict[str, int] = {}
        self._stack = contextlib.ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> TensorReader:
        from safetensors import safe_open

        try:
            for file in sorted({self.checkpoint.files[name] for name in self.names}):
                self._open[file] = self._stack.enter_context(safe_open(self.checkpoint.path / file, framework="pt"))
        except Exception as error:
            self._stack.close()
            raise ModelError(f"{self.checkpoint.path / file} cannot be read: {error}", hint="fetch it again") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        stored = self.checkpoint.stored(name)
        tensor: torch.Tensor = self._open[stored.file].get_tensor(name)
        self._read[name] = stored.size
        if self._progress is not None:
            self._progress(sum(self._read.values()), self._total)
        return tensor

    def parameter(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.nn.Parameter:
        stored = self.checkpoint.stored(name)
        if stored.shape != shape:
            raise ModelError(
                f"{self.checkpoint.path / stored.file}: {name} is {stored.shape}, the config says {shape}",
                hint=OTHER_MODEL,
            )
        return torch.nn.Parameter(self.read(name).to(dtype), requires_grad=False)


def load_stage(
    checkpoint: Checkpoint, reader: TensorReader, first: int, end: int, dtype: torch.dtype
) -> tuple[Any, Any]:
    """The causal LM with identity modules for all but its own layers and embedding; and its final norm, on meta.

    The weights go through transformers' own loader, which knows how to fuse experts and rename old keys.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    config = checkpoint.config.__class__.from_dict(checkpoint.config.to_dict())
    base = AutoModelForCausalLM._model_mapping[type(config)]
    identity = torch.nn.Identity
    norms: list[Any] = []

    class Stage(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            for index in range(config.num_hidden_layers):
                if not first <= index < end:
                    self.model.layers[index] = identity()
            if first != 0:
                self.model.embed_tokens = identity()
            norms.append(self.model.norm)
            self.model.norm = identity()
            self.lm_head = identity()
            self.all_tied_weights_keys: dict[str, str] = {}

    wanted = [name for name in reader.names if name != HEAD and not name.startswith(NORM)]
    tensors = {name: LazyTensor(reader, name) for name in wanted if first == 0 or name != EMBEDDING}
    # torch's grouped matrix product of experts has no float64; one expert at a time has.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 and hasattr(config, "num_experts") else {}
    try:
        with _quietly():
            stage, report = Stage.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation=attention.NAME,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **experts,
            )
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a config can be wrong in more ways than anybody lists
        raise ModelError(f"{checkpoint.path} cannot be loaded: {error!r}", hint=OTHER_MODEL) from error
    _check(checkpoint, report)
    stage.eval().requires_grad_(False)
    return stage, norms[0]


def _check(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    """What transformers would only log, and then go on with random weights, is an error here."""
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.path}: {len(missing)} tensors are missing, the first is {missing[0]}", hint=OTHER_MODEL
        )
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{checkpoint.path}: {name} is {tuple(stored)}, the config says {tuple(expected)}",
            hint=OTHER_MODEL,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar and no report of transformers' own on the terminal."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
