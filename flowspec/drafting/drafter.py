"""What a drafter is, and how the one that a topology names is made.

A drafter guesses the children of draft tokens. It is asked on a worker thread, one step at a time, and knows no pipe:
what to expand, and what of its guesses is ever sent, is the policy's to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flowspec.errors import ModelError
from flowspec.model.device import find_device
from flowspec.model.hub import resolve_model
from flowspec.model.target import Target
from flowspec.model.weights import Checkpoint
from flowspec.schedule.events import GrowTree
from flowspec.topology import Drafter as DrafterSection
from flowspec.topology import Topology
from flowspec.wire.parameters import SamplingParameters

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Children = tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
"""Per expanded serial its children as (token, log-probability), best first."""


Wanted = Callable[[], bool]
"""Asked in the course of a step: is any of its answer still of use? False once, false for good."""


def always() -> bool:
    return True


class Unwanted(Exception):
    """A step was broken off because nobody wants its answer any more."""


class Drafter(Protocol):
    """Sessions are opened, grown and closed from one thread."""

    name: str
    weight_bytes: int
    layers: int
    """That a step goes through; 0 without a model."""
    taps: tuple[int, ...]
    """The target's hidden states that it reads at accepted tokens (`flowspec.wire.messages.FINAL`); () for none."""

    def open(self, session: str, sampling: SamplingParameters, row_limit: int) -> None:
        """Prepare for a session of at most `row_limit` tokens, live draft tokens included."""

    def close(self, session: str) -> None:
        """Forget a session; an unknown one is forgotten already."""

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """The target's hidden states at accepted positions `first`, `first + 1`, ..., each position once and in order.

        `features` is (positions, sum of the taps' widths), the taps side by side in the order of `taps`, in the
        target's dtype, on the CPU. They may come before or after the tokens of these positions (and after drafts on
        top of them), and not at all; those of an unknown session or an older epoch are forgotten.
        """

    def grow(self, request: GrowTree, width: int, wanted: Wanted = always) -> Children:
        """At most `width` children for each token of `request.expand`. A closed session gives none.

        A token may be expanded again, when features have come since: the answer is then what is best known now. A step
        that is not `wanted` any more may raise `Unwanted`; the tokens and the verdict of its request count as heard.
        """


def build_drafter(topology: Topology, target: Target) -> Drafter | None:
    """The drafter of a topology, loaded; None for the kind "none". `ModelError` when it does not fit `target`."""
    chosen = topology.effective_drafter
    if chosen.kind == "none":
        return None
    if chosen.kind == "synthetic":
        return _build_synthetic(topology, target)
    if chosen.kind == "ngram":
        from flowspec.drafting.ngram import NgramDrafter

        return NgramDrafter()
    if not isinstance(target, Checkpoint):
        raise ModelError(f"the model {topology.model} has nothing that a drafter of kind {chosen.kind} could read")
    if chosen.kind == "hybrid":
        from flowspec.drafting.hybrid import HybridDrafter
        from flowspec.drafting.ngram import NgramDrafter

        return HybridDrafter([NgramDrafter(), _build_model_drafter(chosen, topology, target)])
    from flowspec.drafting.hybrid import HybridDrafter

    # Alone, too: its scores are corrected by what came true, which raises what is accepted by some 2 %.
    return HybridDrafter([_build_model_drafter(chosen, topology, target)])


def _build_synthetic(topology: Topology, target: Target) -> Drafter:
    from flowspec.drafting.synthetic import SyntheticDrafter, quality_of

    if isinstance(target, Checkpoint):
        raise ModelError(f"nobody knows beforehand what {target.path} writes: a synthetic drafter has nothing to guess")
    return SyntheticDrafter(target.seed, quality_of(topology.synthetic))


def _build_model_drafter(chosen: DrafterSection, topology: Topology, target: Checkpoint) -> Drafter:
    """A drafter with weights: a small model, or a head of the target."""
    kind, name, node = chosen.model_kind, chosen.model_name, topology.draft_node
    device = find_device(node.device, node.name)
    assert kind is not None
    assert name is not None
    if kind == "causal-lm":
        from flowspec.drafting.causal_lm import CausalLmDrafter

        draft = Checkpoint(resolve_model(name), target.context_limit)
        check_vocabulary(draft, target)
        return CausalLmDrafter.load(draft, dtype=node.dtype, device=device, vocab_size=target.vocab_size)
    from flowspec.drafting.head_drafter import HeadDrafter
    from flowspec.drafting.head_files import load_head

    folder = resolve_model(name)
    return HeadDrafter(load_head(folder, target, kind=kind, dtype=node.dtype, device=device, taps=chosen.taps))


def check_vocabulary(draft: Checkpoint, target: Checkpoint) -> None:
    """Raise `ModelError` unless token ids mean the same to both models.

    Vocabularies may be padded to different sizes when the tokenizers say that they agree. Without tokenizers the sizes
    must be equal, and a warning says that this is all that is known.
    """
    families = "choose a draft model of the same family, or the drafter ngram, which needs none"
    same = draft.tokenizer_hash() != "" and draft.tokenizer_hash() == target.tokenizer_hash()
    ours, theirs = (None, None) if same else (vocabulary(draft.path), vocabulary(target.path))
    if ours is not None and theirs is not None:
        differing = next((token for token, index in ours.items() if theirs.get(token) != index), None)
        if differing is not None:
            raise ModelError(
                f"the draft model {draft.path} and the model {target.path} have different tokenizers: {differing!r} is "
                f"token {ours[differing]} to the one and {theirs.get(differing, 'unknown')} to the other",
                hint=f"token ids must mean the same to both; {families}",
            )
    elif not same and draft.vocab_size != target.vocab_size:
        raise ModelError(
            f"the draft model {draft.path} has a vocabulary of {draft.vocab_size}, "
            f"the model {target.path} one of {target.vocab_size}",
            hint=families,
        )
    elif not same:
        logger.warning(
            "nothing tells whether token ids mean the same to the draft model %s and to %s: not both have a "
            "tokenizer.json; if they do not, no guess will come true",
            draft.path,
            target.path,
        )


def vocabulary(path: Path) -> dict[str, int] | None:
    """Token -> id of the tokenizer in a model's folder; None when there is no tokenizer.json."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        found: dict[str, int] = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(f"{file} cannot be read: {error}") from error
    return found
