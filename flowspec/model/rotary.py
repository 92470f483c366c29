"""Rotary positions whose frequencies depend on how long a text becomes, fixed once by the context of the pipeline.

For `longrope` and `dynamic` transformers chooses frequencies anew in every call, by the largest position in it. Here a
call is a few rows, whose keys meet those of earlier calls in a cache: they would have been turned by other frequencies,
and by which would depend on how a prompt was cut. So all nodes choose once, for all sessions, and so does the check
against the whole model.
"""

from __future__ import annotations

from typing import Any, Final

LONGROPE: Final = "longrope"
KINDS: Final = ("default", "linear", "dynamic", "yarn", LONGROPE, "llama3")
"""What a config may call its `rope_type`."""


def context_limit(config: Any, asked: int | None) -> int:
    """Most positions of a pipeline that is asked for `asked` of them; None asks for what the model does at its best.

    A `longrope` model was trained with its short factors first, and has others for longer texts: these have to be asked
    for, since they serve short texts less well.
    """
    most = int(config.max_position_embeddings)
    return min(most, asked or _short_context(config) or most)


def has_long_factors(config: Any, asked: int | None) -> bool:
    """Whether such a pipeline turns positions by the long factors of `longrope`."""
    short = _short_context(config)
    return short is not None and context_limit(config, asked) > short


def fix_frequencies(config: Any, asked: int | None) -> None:
    """Change `config` so that transformers turns every position by the frequencies of such a pipeline.

    Within the context that a `dynamic` model names its frequencies are the plain ones, and no pipeline goes beyond it.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type")
    if kind == LONGROPE:
        factors = rope["long_factor" if has_long_factors(config, asked) else "short_factor"]
        config.rope_parameters = {**rope, "short_factor": factors, "long_factor": factors}
    elif kind == "dynamic":
        kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        config.rope_parameters = {**kept, "rope_type": "default"}


def _short_context(config: Any) -> int | None:
    """Positions up to which the short factors of `longrope` are meant; None for models of other kinds."""
    rope = getattr(config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == LONGROPE else None
