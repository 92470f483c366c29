"""Is a generated text what the model alone writes? The whole model, in one process, without pipeline or speculation.

It runs transformers' own forward pass over prompt and output (teacher forcing), draws each token by the sampling law
and compares. It refuses to know how the output came about.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flowspec.errors import ModelError
from flowspec.model.hub import resolve_model
from flowspec.model.sampling import TIE, Explanation, Sampler, TokenHistory
from flowspec.model.weights import Checkpoint
from flowspec.wire.parameters import SamplingParameters

CHUNK = 256
"""Output tokens whose logits are held at a time."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """An output token that is not the one drawn here. Distances as in `flowspec.model.sampling.Explanation`."""

    index: int
    """In the output, from 0."""
    given: int
    expected: int
    gap: float
    cut_distance: float


@dataclass(frozen=True, slots=True)
class Report:
    """`tokens` were compared; all but `ties` and `differences` are equal."""

    tokens: int
    ties: tuple[Deviation, ...]
    differences: tuple[Deviation, ...]

    @property
    def equal(self) -> int:
        return self.tokens - len(self.ties) - len(self.differences)

    def as_values(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "equal": self.equal,
            "ties": [asdict(deviation) for deviation in self.ties],
            "differences": [asdict(deviation) for deviation in self.differences],
        }

    def text(self) -> str:
        """For people: one line, and one more for each deviation."""
        lines = [
            f"check: {self.equal} of {self.tokens} tokens equal those of the model alone, "
            f"{len(self.ties)} shown ties, {len(self.differences)} differences"
        ]
        for kind, deviations in (("tie", self.ties), ("DIFFERENCE", self.differences)):
            lines += [
                f"  {kind} at output token {found.index}: {found.given} in place of {found.expected} "
                f"(gap {found.gap:.2g}, nearest cut {found.cut_distance:.2g})"
                for found in deviations
            ]
        return "\n".join(lines)


class WholeModel:
    """All layers of a checkpoint in this process. Final norm and LM head run in float32 or better, as in a stage.

    `context` is that of the pipeline, by which some models turn positions differently (see `rotary`).
    """

    def __init__(self, name: str, dtype: str = "float32", context: int | None = None) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        path = resolve_model(name)
        config = Checkpoint(path, context).config
        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path} cannot be loaded whole: {error}") from error
        finally:
            if bar:
                logging.enable_progress_bar()
        self._model: Any = model.eval()
        self._norm: Any = None
        if dtype in ("bfloat16", "float16"):
            self._norm = copy.deepcopy(model.model.norm).float()
            self._head = model.lm_head.weight.float()
            model.model.norm = torch.nn.Identity()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], count: int) -> torch.Tensor:
        """The logits after each of the last `count` of `tokens`."""  # (count, vocabulary)
        ids = torch.tensor([list(tokens)])
        if self._norm is None:
            found: torch.Tensor = self._model(ids, use_cache=False, logits_to_keep=count).logits[0]
            return found
        hidden = self._model.model(ids, use_cache=False).last_hidden_state[0, -count:]
        return torch.nn.functional.linear(self._norm(hidden.float()), self._head)


def check_generation(
    model: str | WholeModel,
    prompt: Sequence[int],
    output: Sequence[int],
    sampling: SamplingParameters,
    *,
    dtype: str = "float32",
    context: int | None = None,
) -> Report:
    """Compare `output` with what `model` draws after `prompt`, position by position.

    `dtype` and `context` are those of the pipeline, where `model` is a name.
    """
    whole = WholeModel(model, dtype, context) if isinstance(model, str) else model
    tokens = [*prompt, *output]
    ties: list[Deviation] = []
    differences: list[Deviation] = []
    sampler: Sampler | None = None
    history: TokenHistory | None = None
    for start in range(0, len(output), CHUNK):
        part = output[start : start + CHUNK]
        begin = len(prompt) + start
        # One more at the end is not sampled from: the last token's successor was not asked for.
        rows = whole.logits(tokens[: begin + len(part) - 1], len(part))
        if sampler is None:
            sampler = Sampler(sampling, rows.shape[-1])
            history = TokenHistory(rows.shape[-1])
            history.add(prompt)
        assert history is not None
        for index, given in enumerate(part):
            explanation = sampler.explain(rows[index], begin + index, history)
            history.add((given,))
            if explanation.token != given:
                deviation = Deviation(
                    start + index, given, explanation.token, explanation.gap, explanation.cut_distance
                )
                (ties if _is_shown_tie(explanation, given) else differences).append(deviation)
    return Report(len(output), tuple(ties), tuple(differences))


def _is_shown_tie(explanation: Explanation, given: int) -> bool:
    """Rounding alone explains `given`: it was the close second, or a cut was close enough to change what is kept."""
    return explanation.cut_distance < TIE or (explanation.gap < TIE and given == explanation.runner_up)
