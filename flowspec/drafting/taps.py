"""Which hidden states of the target a head reads, in one meaning whatever project wrote its checkpoint.

Here tap i is always the *input of layer i* of the target (`layer_count`: the last layer's output before the final norm;
`FINAL`: after it). Checkpoints number them in two ways that differ by one, and a head that gets the neighbours' states
still runs, with a tenth of its acceptance:

- EAGLE-3's own code, SGLang, SpecForge and ModelOpt name, inside `eagle_config`, the layers whose *output* is taken;
- vLLM and speculators name, at the top level, the layers whose *input* is taken;
- a checkpoint that names none means the inputs of the layers 2, n // 2 and n - 3 of n (the same in all projects).

Conversions from one format to the other have not always moved the numbers, so an explicit choice wins over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flowspec.errors import ModelError
from flowspec.wire.messages import FINAL

IDS: Final = "eagle_aux_hidden_state_layer_ids"
OF_ANOTHER: Final = 'it belongs to another target, or flowspec.json beside it has to name its "taps"'


def default_taps(layer_count: int) -> tuple[int, ...]:
    """EAGLE-3's three depths for a target of `layer_count` layers."""
    return 2, layer_count // 2, layer_count - 3


def resolve_taps(
    config: Mapping[str, Any], layer_count: int, folder: Path, chosen: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The taps of the EAGLE-3 head with this `config.json`, as inputs of the target's layers.

    `chosen` wins and is taken as it is. ModelError when the config names taps twice and differently, or when one lies
    outside the target.
    """
    if chosen is not None:
        return check_taps(tuple(chosen), layer_count, folder)
    nested = config.get("eagle_config")
    found: dict[str, tuple[int, ...]] = {}
    if isinstance(nested, Mapping) and nested.get(IDS):
        found[f"eagle_config.{IDS}"] = tuple(index + 1 for index in _integers(nested[IDS], folder))
    if config.get(IDS):
        found[IDS] = _integers(config[IDS], folder)
    if len(set(found.values())) > 1:
        told = " and ".join(f"{name} the inputs of layers {list(taps)}" for name, taps in found.items())
        raise ModelError(
            f"{folder / 'config.json'}: {told}",
            hint='say which hidden states it was trained on: {"taps": [...]} in flowspec.json beside it',
        )
    taps = next(iter(found.values()), None) or default_taps(layer_count)
    return check_taps(taps, layer_count, folder)


def check_taps(taps: tuple[int, ...], layer_count: int, folder: Path, hint: str = OF_ANOTHER) -> tuple[int, ...]:
    """`taps` themselves; ModelError when there are none, or one that a target of `layer_count` layers does not have."""
    outside = [tap for tap in taps if tap != FINAL and not 0 <= tap <= layer_count]
    if not taps or outside:
        layers = "1 layer" if layer_count == 1 else f"{layer_count} layers"
        what = f"the input of layer {outside[0]}" if outside else "no hidden state at all"
        raise ModelError(
            f"{folder}: the head reads {what}; the target has {layers}",
            hint=hint,
        )
    return taps


def native_ids(taps: Sequence[int]) -> list[int] | None:
    """What `eagle_config` says for these taps; None where it has no number for one of them (`FINAL`)."""
    return None if FINAL in taps else [tap - 1 for tap in taps]


def _integers(value: Any, folder: Path) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise ModelError(f"{folder / 'config.json'}: {IDS} is {value!r}, expected a list of layer numbers")
    return tuple(value)
