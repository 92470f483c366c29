"""From a head's `config.json`, in any of the layouts there are, to a `HeadConfig`.

The layouts put the same facts in different places, and give one name to different facts:

| layout | who writes it | how it is known | the decoder's config | conventions |
|---|---|---|---|---|
| eagle | EAGLE-1/2 | `layers.0.*`, `fc` over two states | top level | top level |
| eagle3 | EAGLE-3, SpecForge, ModelOpt | `midlayer.*`, `draft_vocab_size` | top level | there, `eagle_config` |
| speculators | vLLM's speculators | `speculators_model_type` | `transformer_layer_config` | top level |

A convention that `config.json` does not name is off, except that EAGLE-1/2 means a biased `fc` by silence. A file
`flowspec.json` beside it wins over all of this; its keys are `OVERRIDES`, each in the meaning of `HeadConfig`, and its
`taps` are inputs of the target's layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final

from flowspec.drafting.head_config import KINDS, HeadConfig
from flowspec.drafting.taps import check_taps, resolve_taps
from flowspec.errors import ModelError
from flowspec.model.sampling import SHARPNESS
from flowspec.wire.messages import FINAL

OVERRIDES: Final = frozenset(
    {
        "attention_bias",
        "fc_bias",
        "fc_norm",
        "kind",
        "mlp_bias",
        "norm_before_fc",
        "norm_before_residual",
        "norm_output",
        "output_bias",
        "qk_norm",
        "rope_parameters",
        "sharpness",
        "taps",
    }
)
"""Keys of `flowspec.json`."""

SIDECAR: Final = "flowspec.json"
OF_HEADS: Final = ("speculators_model_type", "draft_vocab_size", "eagle_config")
"""Keys that no language model's config has, one of them in that of every EAGLE-3 head."""
DECODERS: Final = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}


@dataclass(frozen=True, slots=True)
class TargetShape:
    """What a head has to agree with."""

    path: Path
    hidden_size: int
    vocab_size: int
    layer_count: int


class Settings:
    """Values of several JSON objects, the first that names a key deciding; types are checked."""

    def __init__(self, folder: Path, *sources: tuple[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self._sources = sources

    def find(self, key: str) -> tuple[str, Any]:
        """(where, value); the value is None when no source names the key, or names it null."""
        for label, source in self._sources:
            if source.get(key) is not None:
                return label, source[key]
        return "config.json", None

    def _typed(self, key: str, kinds: tuple[type, ...], expected: str) -> Any:
        label, value = self.find(key)
        if value is not None and type(value) not in kinds:
            raise ModelError(f"{self.folder / label}: {key} is {value!r}, expected {expected}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self._typed(key, (int,), "a whole number")
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.folder / 'config.json'} does not name {key}", hint="it is no draft head's config")
        if value < 1:
            raise ModelError(f"{self.folder / 'config.json'}: {key} is {value}, expected 1 or more")
        return int(value)

    def number(self, key: str, default: float) -> float:
        value = self._typed(key, (int, float), "a number")
        if value is not None and not isfinite(value):
            raise ModelError(f"{self.folder / self.find(key)[0]}: {key} is {value}, expected a finite number")
        return default if value is None else float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._typed(key, (bool,), "true or false")
        return default if value is None else bool(value)

    def text(self, key: str, default: str) -> str:
        value = self._typed(key, (str,), "a text")
        return default if value is None else str(value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._typed(key, (dict,), "an object")
        return {} if value is None else dict(value)


def read_settings(
    folder: Path,
    config: Mapping[str, Any],
    sidecar: Mapping[str, Any],
    names: frozenset[str],
    target: TargetShape,
    *,
    midlayer: bool = False,
    kind: str | None = None,
    taps: Sequence[int] | None = None,
) -> HeadConfig:
    """The head in `folder`, whose tensors are `names` (as `HeadFolder` spells them), for `target`.

    `midlayer`: its first layer is stored under EAGLE-3's own name. `kind` is what the caller expects; `taps` (inputs of
    layers) wins over whatever the folder says. ModelError when something is missing, contradictory, not supported, or
    made for another target.
    """
    if unknown := sorted(sidecar.keys() - OVERRIDES):
        raise ModelError(
            f"{folder / SIDECAR}: {unknown[0]!r} is not a key of it", hint=f"there are {', '.join(sorted(OVERRIDES))}"
        )
    found = kind_told(folder, config, sidecar, names)
    if kind is not None and kind != found:
        raise ModelError(
            f"{folder} holds {KINDS[found]}, not {KINDS.get(kind, kind)}", hint=f"choose the drafter {found}"
        )
    nested = config.get("eagle_config")
    nested = nested if isinstance(nested, Mapping) else {}
    decoder = _decoder(folder, config)
    overriding = Settings(folder, (SIDECAR, sidecar))
    model = Settings(folder, ("config.json", decoder))
    whole = Settings(folder, (SIDECAR, sidecar), ("config.json", nested), ("config.json", config))
    if not whole.flag("use_aux_hidden_state", True):
        raise ModelError(f"{folder / 'config.json'}: EAGLE-3 heads without hidden states of the target are unsupported")

    hidden, heads = model.size("hidden_size"), model.size("num_attention_heads")
    kv_heads = model.size("num_key_value_heads", heads)
    target_hidden = whole.size("target_hidden_size", hidden) if found == "eagle3" else hidden
    vocabulary = model.size("vocab_size")
    if (target_hidden, vocabulary) != (target.hidden_size, target.vocab_size):
        raise ModelError(
            f"the draft head {folder} is for a model of hidden size {target_hidden} and {vocabulary} tokens; "
            f"{target.path} has hidden size {target.hidden_size} and {target.vocab_size} tokens",
            hint="a head fits only the model that it was trained for",
        )
    if heads % kv_heads:
        raise ModelError(f"{folder / 'config.json'}: {heads} attention heads cannot share {kv_heads} of keys")
    head_dim = model.size("head_dim", max(1, hidden // heads))
    if head_dim % 2:
        raise ModelError(f"{folder / 'config.json'}: heads of {head_dim} columns have no halves, which RoPE turns")
    draft_vocabulary = whole.size("draft_vocab_size", vocabulary) if found == "eagle3" else vocabulary
    if draft_vocabulary > vocabulary:
        raise ModelError(
            f"{folder / 'config.json'}: draft_vocab_size is {draft_vocabulary}, of a vocabulary of {vocabulary}"
        )
    attention_bias, output_bias = _biases(found, config, decoder, model)
    return HeadConfig(
        kind=found,
        hidden_size=hidden,
        target_hidden_size=target_hidden,
        vocab_size=vocabulary,
        draft_vocab_size=draft_vocabulary,
        intermediate_size=model.size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        taps=_taps(found, folder, config, overriding, target.layer_count, taps),
        layer_count=1 if midlayer and not _several(names) else model.size("num_hidden_layers", 1),
        hidden_act=model.text("hidden_act", "silu"),
        rms_norm_eps=model.number("rms_norm_eps", 1e-6),
        context=model.size("max_position_embeddings", 2048),
        rope=_rope(overriding, model),
        attention_bias=overriding.flag("attention_bias", attention_bias),
        output_bias=overriding.flag("output_bias", output_bias),
        mlp_bias=overriding.flag("mlp_bias", model.flag("mlp_bias")),
        fc_bias=overriding.flag("fc_bias", found == "eagle" and model.flag("bias", True)),
        qk_norm=overriding.flag("qk_norm", "speculators_model_type" in config and decoder["model_type"] == "qwen3"),
        norm_before_fc=found == "eagle3" and whole.flag("norm_before_fc"),
        fc_norm=found == "eagle3" and whole.flag("fc_norm"),
        norm_before_residual=found == "eagle3" and whole.flag("norm_before_residual"),
        norm_output=found == "eagle3" and _norm_output(folder, config, whole, overriding),
        sharpness=_sharpness(overriding),
        own_embedding="embed_tokens.weight" in names,
    )


def _sharpness(sidecar: Settings) -> float:
    found = sidecar.number("sharpness", SHARPNESS)
    if not 0.0 < found < inf:
        raise ModelError(f"{sidecar.folder / SIDECAR}: sharpness is {found:g}, expected a number above 0")
    return found


def kind_told(folder: Path, config: Mapping[str, Any], sidecar: Mapping[str, Any], names: frozenset[str]) -> str:
    """The kind of the head in `folder`: as its files say, else by its tensors. ModelError for another project's."""
    written = config.get("speculators_model_type")
    if written not in (None, "eagle3"):
        raise ModelError(
            f"{folder / 'config.json'}: speculators of the type {written!r} are not supported", hint="eagle3 is"
        )
    given = sidecar.get("kind")
    if given is not None and given not in list(KINDS):
        raise ModelError(f"{folder / SIDECAR}: kind is {given!r}, expected one of {', '.join(KINDS)}")
    by_config = "eagle3" if config.get("draft_vocab_size") is not None else None
    return str(given or written or by_config or kind_of(names))


def kind_of(names: frozenset[str]) -> str:
    """The kind whose tensors these are: only EAGLE-3 norms the state that its first layer reads."""
    return "eagle3" if "layers.0.hidden_norm.weight" in names or "d2t" in names else "eagle"


def _decoder(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the decoder layer is described; speculators leave out what equals transformers' defaults."""
    if config.get("speculators_model_type") is None:
        return config
    import transformers

    nested = config.get("transformer_layer_config")
    family = nested.get("model_type", "llama") if isinstance(nested, Mapping) else None
    if not isinstance(nested, Mapping) or family not in list(DECODERS):
        raise ModelError(
            f"{folder / 'config.json'}: transformer_layer_config is of the type {family!r}",
            hint=f"supported are {', '.join(DECODERS)}",
        )
    try:
        found: dict[str, Any] = getattr(transformers, DECODERS[family])(**nested).to_dict()
    except Exception as error:  # its checks raise whatever they like
        raise ModelError(f"{folder / 'config.json'}: transformer_layer_config cannot be read: {error}") from error
    return found


def _several(names: frozenset[str]) -> bool:
    """Whether there are layers behind the first; a lone midlayer is all there is, whatever its config came from."""
    return any(name.startswith("layers.") and not name.startswith("layers.0.") for name in names)


def _biases(kind: str, config: Mapping[str, Any], decoder: Mapping[str, Any], model: Settings) -> tuple[bool, bool]:
    """Of (q, k and v; the attention's output). Qwen2's heads say `qkv_bias`, and have none at the output."""
    if "speculators_model_type" in config and decoder["model_type"] == "qwen2":
        return True, False
    if decoder.get("qkv_bias") is not None:
        return model.flag("qkv_bias"), False
    # EAGLE-1/2 reads qkv_bias alone; `attention_bias` there is a left-over of the target's config.
    both = kind == "eagle3" and model.flag("attention_bias")
    return both, both


def _norm_output(folder: Path, config: Mapping[str, Any], whole: Settings, overriding: Settings) -> bool:
    """Whether the normed output is the next state. SpecForge means by this name the norm in front of the LM head."""
    said = whole.flag("norm_output")
    told = "speculators_model_type" in config or overriding.find("norm_output")[1] is not None
    if said and not told and not whole.flag("fc_norm"):
        raise ModelError(
            f"{folder / 'config.json'}: norm_output means one thing in EAGLE 3.1 (which has fc_norm, too) and another "
            "in SpecForge",
            hint='say it in flowspec.json beside it: {"norm_output": true} feeds the normed state to the next step, '
            "false the state before the norm",
        )
    return said


def _taps(
    kind: str,
    folder: Path,
    config: Mapping[str, Any],
    overriding: Settings,
    layer_count: int,
    chosen: Sequence[int] | None,
) -> tuple[int, ...]:
    given = overriding.find("taps")[1] if chosen is None else list(chosen)
    if given is not None and not (isinstance(given, list) and all(type(tap) is int for tap in given)):
        raise ModelError(f"{folder / SIDECAR}: taps is {given!r}, expected a list of layer numbers")
    if kind == "eagle":
        taps = check_taps((FINAL,) if given is None else tuple(given), layer_count, folder)
        if len(taps) != 1:
            raise ModelError(f"{folder}: an EAGLE-1/2 head reads one hidden state, not the {len(taps)} of {taps}")
        return taps
    return resolve_taps(config, layer_count, folder, given)


def _rope(overriding: Settings, model: Settings) -> dict[str, Any]:
    """As `rope_parameters`, from that or from the older `rope_theta` and `rope_scaling`."""
    rope = overriding.mapping("rope_parameters") or model.mapping("rope_parameters") or model.mapping("rope_scaling")
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError(
            f"{model.folder}: RoPE of a part of each head, or one for each kind of layer, is unsupported: {rope}"
        )
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    rope.setdefault("rope_theta", model.number("rope_theta", 10000.0))
    return rope
