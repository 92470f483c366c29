"""Draft heads from and to disk: what a folder must hold, reading it into modules, writing modules into folders.

The module itself says what tensors there have to be, once `head_settings` has read its sizes: every tensor of a folder
is used, or an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from flowspec.drafting.eagle import EagleHead
from flowspec.drafting.eagle3 import Eagle3Head
from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_folder import WEIGHTS, HeadFolder
from flowspec.drafting.head_settings import OVERRIDES, SIDECAR, TargetShape, read_settings
from flowspec.drafting.taps import IDS, native_ids
from flowspec.drafting.vocabulary_map import MAPS, maps_of, read_target_tokens
from flowspec.errors import ModelError
from flowspec.model.loading import TensorReader
from flowspec.model.weights import EMBEDDING, Checkpoint

FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})


def build_head(config: HeadConfig) -> DraftHead:
    """A head with torch's random weights, on torch's default device; `torch.device("meta")` gives the shapes alone."""
    try:
        return EagleHead(config) if config.kind == "eagle" else Eagle3Head(config)
    except Exception as error:  # transformers' checks of RoPE raise whatever they like, over several lines
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"no draft head can be made of this: {reason}") from error


def target_shape(target: Checkpoint) -> TargetShape:
    return TargetShape(target.path, target.hidden_size, target.vocab_size, target.layer_count)


def read_config(
    folder: HeadFolder, target: TargetShape, *, kind: str | None = None, taps: Sequence[int] | None = None
) -> HeadConfig:
    """What the head in `folder` is made of; see `head_settings.read_settings`."""
    return read_settings(
        folder.path,
        folder.config,
        folder.sidecar,
        folder.names,
        target,
        midlayer=folder.midlayer,
        kind=kind,
        taps=taps,
    )


def borrowed(config: HeadConfig) -> frozenset[str]:
    """Names of the weights that are the target's."""
    embedding = set() if config.own_embedding else {"embed_tokens.weight"}
    head = {"lm_head.weight"} if config.kind == "eagle" else set()
    return frozenset(embedding | head)


def expected_tensors(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that a head's folder must hold, by the module's names, vocabulary maps left out."""
    with torch.device("meta"):
        head = build_head(config)
    return {name: tuple(value.shape) for name, value in head.state_dict().items() if name not in borrowed(config)}


def check_tensors(folder: HeadFolder, config: HeadConfig) -> None:
    """Raise ModelError unless the folder holds exactly a head's tensors, of the right shapes and kinds."""
    try:
        expected = expected_tensors(config)
    except ModelError as error:
        raise ModelError(f"{folder.path / 'config.json'}: {error.message}") from error
    mapped = set(MAPS) if config.draft_vocab_size < config.vocab_size else set(MAPS) & folder.names
    hint = f"what config.json leaves open can be said in {SIDECAR} beside it; docs/drafters.md lists its keys"
    if missing := sorted((expected.keys() | mapped) - folder.names):
        raise ModelError(f"{folder.path}: missing tensors: {', '.join(missing)}", hint=hint)
    if surplus := sorted(folder.names - expected.keys() - mapped):
        unknown = ", ".join(folder.tensors[name].name for name in surplus)
        raise ModelError(f"{folder.path}: tensors that such a head does not have: {unknown}", hint=hint)
    for name, shape in expected.items():
        stored = folder.tensors[name]
        where = f"{folder.path / stored.file}: {stored.name}"
        if stored.shape != shape:
            raise ModelError(f"{where} is {stored.shape}, expected {shape}", hint=hint)
        if stored.dtype not in FLOATING:
            raise ModelError(f"{where} is stored as {stored.dtype}", hint="quantised heads are not supported")


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head's folder that fits its target, looked at: all but its weights."""

    folder: HeadFolder
    config: HeadConfig
    target_tokens: torch.Tensor | None
    """As in `DraftHead`."""


def stored_head(
    folder: Path, target: Checkpoint, *, kind: str | None = None, taps: Sequence[int] | None = None
) -> StoredHead:
    """What lies in `folder`. ModelError names what is missing, surplus, of another shape, or for another target."""
    found = HeadFolder(folder)
    config = read_config(found, target_shape(target), kind=kind, taps=taps)
    check_tensors(found, config)
    maps = found.read([name for name in MAPS if name in found.names])
    return StoredHead(found, config, read_target_tokens(found.path, maps, config))


def load_head(
    folder: Path,
    target: Checkpoint,
    *,
    kind: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    taps: Sequence[int] | None = None,
) -> DraftHead:
    """The head in `folder`, ready to draft for `target`: weights in `dtype` on `device`, no gradients.

    What the head does not have, embedding and LM head, is read from the target's checkpoint, and no other tensor of it.
    The LM head and the norm in front of it are float32 at least. `taps` (inputs of the target's layers) wins over the
    folder's. ModelError as for `stored_head`, and when a weight is no finite number.
    """
    stored = stored_head(folder, target, kind=kind, taps=taps)
    with torch.device("meta"):
        head = build_head(stored.config)
    exact = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name, tensor in stored.folder.read(list(expected_tensors(stored.config))).items():
        weights = tensor.to(device, weight_dtype(name, exact))
        _check_finite(weights, stored.folder, name)
        _assign(head, name, weights)
    borrow(head, target, exact, device)
    if stored.target_tokens is not None:
        head.target_tokens = stored.target_tokens.to(device)
    return head.eval().requires_grad_(False)


def _check_finite(weights: torch.Tensor, folder: HeadFolder, name: str) -> None:
    """Raise ModelError unless all of `weights` are finite: one that is not takes every guess away, and no token."""
    # The extremes are NaN where anything is, and to find them takes no memory.
    if not all(bool(extreme.isfinite()) for extreme in weights.aminmax()):
        stored = folder.tensors[name]
        raise ModelError(
            f"{folder.path / stored.file}: {stored.name} holds numbers that are not finite, as {weights.dtype}",
            hint="the head is damaged, or its training went wrong; fetch it again, or take another",
        )


def weight_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a weight is held in: logits are made in float32 at least, as the target's are."""
    last = name.startswith(("lm_head.", "norm."))
    return torch.promote_types(dtype, torch.float32) if last else dtype


def borrow(head: DraftHead, target: Checkpoint, dtype: torch.dtype, device: str | torch.device) -> None:
    """Give `head` the target's embedding and LM head where it has none of its own; one copy where they are one."""
    config = head.config
    names = borrowed(config)
    if "embed_tokens.weight" in names:
        shape = (config.vocab_size, config.hidden_size)
        target.fetch(0, 0)
        with TensorReader(target, 0, 0, None) as reader:
            _assign(head, "embed_tokens.weight", reader.parameter(EMBEDDING, shape, dtype).to(device))
    if "lm_head.weight" not in names:
        return
    last = weight_dtype("lm_head.weight", dtype)
    if target.tied and not config.own_embedding and last == dtype:
        head.lm_head.weight = head.embed_tokens.weight
        return
    count = target.layer_count
    target.fetch(count, count)
    with TensorReader(target, count, count, None) as reader:
        shape = (config.vocab_size, config.hidden_size)
        stored = EMBEDDING if target.tied else "lm_head.weight"
        _assign(head, "lm_head.weight", reader.parameter(stored, shape, last).to(device))


def _assign(head: nn.Module, name: str, tensor: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(head.get_submodule(module), attribute, nn.Parameter(tensor, requires_grad=False))


def config_for(kind: str, target: Checkpoint, taps: tuple[int, ...], **changes: Any) -> HeadConfig:
    """A head of the target's own shape, as training starts from; `changes` are fields of `HeadConfig`."""
    model = target.config
    heads = int(model.num_attention_heads)
    rope = dict(getattr(model, "rope_parameters", None) or {})
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        # A head turns whole heads; factors made for a part of them would not fit.
        rope = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    settings: dict[str, Any] = {
        "kind": kind,
        "hidden_size": target.hidden_size,
        "target_hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": target.vocab_size,
        "intermediate_size": int(model.intermediate_size),
        "heads": heads,
        "kv_heads": int(getattr(model, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(model, "head_dim", None) or target.hidden_size // heads),
        "taps": taps,
        "hidden_act": str(model.hidden_act),
        "rms_norm_eps": float(model.rms_norm_eps),
        "context": target.context_limit,
    }
    return HeadConfig(**{**settings, **({"rope": rope} if rope else {}), **changes})


def new_head(
    config: HeadConfig,
    target: Checkpoint,
    *,
    target_tokens: torch.Tensor | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    spread: float = 0.02,
    seed: int = 0,
) -> DraftHead:
    """A head to be trained: matrices normal with standard deviation `spread`, biases 0, norms 1; the rest the target's.

    `target_tokens`, increasing, name the draft vocabulary where it is smaller than the target's. Gradients are on for
    the head's own weights and off for borrowed ones.
    """
    exact = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if (config.draft_vocab_size == config.vocab_size) != (target_tokens is None):
        raise ModelError("a draft vocabulary smaller than the target's needs the tokens that are in it")
    with torch.device("meta"):
        head = build_head(config)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in expected_tensors(config).items():
        if len(shape) == 2:
            values = torch.randn(shape, generator=generator) * spread
        else:
            values = torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
        _assign(head, name, values.to(device, weight_dtype(name, exact)))
        head.get_parameter(name).requires_grad_(True)
    borrow(head, target, exact, device)
    head.target_tokens = None if target_tokens is None else target_tokens.to(device, torch.int64)
    return head


def save_head(head: DraftHead, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, flowspec.json and model.safetensors into `folder`, made if need be; not in one step.

    The layout is EAGLE's for "eagle" and the `midlayer` one of EAGLE-3 for "eagle3"; conventions are written out in
    both JSON files. Weights that are the target's are left out. `dtype`: what the weights are stored in, their own when
    None.
    """
    from safetensors.torch import save_file

    config = head.config
    folder.mkdir(parents=True, exist_ok=True)
    state = head.state_dict()
    tensors = {
        _stored_name(config, name): state[name].detach().to("cpu", dtype or state[name].dtype).contiguous()
        for name in expected_tensors(config)
    }
    if head.target_tokens is not None:
        tensors |= maps_of(head.target_tokens, config.vocab_size)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    sidecar = {key: getattr(config, key) for key in OVERRIDES - {"rope_parameters"}}
    for name, content in (("config.json", _native_config(config)), (SIDECAR, sidecar)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stored_name(config: HeadConfig, name: str) -> str:
    return name.replace("layers.0.", "midlayer.") if config.kind == "eagle3" else name


def _native_config(config: HeadConfig) -> dict[str, Any]:
    """What EAGLE's own code, SGLang and vLLM read, with what flowspec needs beside it."""
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3" if config.kind == "eagle3" else "LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.context,
        "rope_parameters": dict(config.rope),
        "rope_theta": config.rope["rope_theta"],
        "qkv_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": False,
    }
    if config.kind == "eagle":
        return content | {"bias": config.fc_bias}
    content |= {
        "draft_vocab_size": config.draft_vocab_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
    }
    if config.target_hidden_size != config.hidden_size:
        content["target_hidden_size"] = config.target_hidden_size
    if (ids := native_ids(config.taps)) is not None:
        content["eagle_config"] = {IDS: ids, "use_aux_hidden_state": True}
    return content
