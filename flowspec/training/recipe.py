"""Everything that a training of a draft is told, checked as far as that goes without loading anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final

from flowspec.errors import ConfigurationError
from flowspec.training.documents import SUFFIXES
from flowspec.training.storage import CHECKPOINT, FACTS, OWN_TEXT, UNFINISHED, check_writable

KINDS: Final = ("eagle", "eagle3", "causal-lm")
DTYPES: Final = ("bfloat16", "float32")
WHOLE_VOCABULARY: Final = 32_000
"""Up to so many tokens an eagle3 head keeps the target's whole vocabulary, unless told otherwise."""
MINUTES: Final = 30.0
SEEDS: Final = 2**63
"""The generators take no others."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training, from the user's words. Lengths count tokens, `batch` windows of `length`."""

    model: str
    kind: str
    data: tuple[Path, ...]
    out: Path
    suffixes: tuple[str, ...] = SUFFIXES
    begin: Path | None = None
    """A draft of the same kind, whose weights this one starts with: for more text, or a target that moved. A small
    language model has the same shape; a head decides on taps, draft vocabulary and conventions, and may have fewer
    layers than this one: further ones begin with adding nothing."""
    minutes: float | None = None
    steps: int | None = None
    batch: int = 8
    length: int = 512
    long_length: int = 1024
    """Of the windows in the last part, which prepare the draft for longer contexts; never above the model's limit."""
    part: int | None = None
    """Windows of a batch that are in memory at once; None: all."""
    unroll: int = 5
    """Draft steps that a head is trained for."""
    decay: float = 0.8
    """A step's weight, against that of the step before."""
    coupling: float = 0.0
    """Weight of the probability that draft and target draw different tokens with the same noise, in the loss."""
    layers: int = 1
    copy_layers: bool = False
    """causal-lm: begin with the target's first layers."""
    draft_vocab: int | None = None
    taps: tuple[int, ...] | None = None
    own_embedding: bool = False
    feature_weight: float = 0.1
    rate: float = 1.0
    """Factor on the learning rates."""
    cooldown: float = 0.4
    """The share of the training, at its end, in which they fall."""
    self_generate: int = 0
    temperature: float = 0.8
    own_share: float = 0.0
    """The share of the training that those completions are at least, 0 <= own_share < 1: they are repeated for it."""
    device: str = "cpu"
    dtype: str = "bfloat16"
    seed: int = 0
    note: str = ""
    """For the model card: how this training was special."""
    positions: int = 100
    """Trees that the acceptance length is measured with at the end."""
    checkpoint_seconds: float = 180.0
    evaluate_seconds: float = 300.0
    prompt_length: int = field(default=64)
    """Tokens of a text that the target continues, for `self_generate`."""

    def check(self) -> None:
        """Raise ConfigurationError for what cannot be trained."""
        if self.kind not in KINDS:
            raise ConfigurationError(f"--kind is {self.kind!r}", hint=f"the kinds are {', '.join(KINDS)}")
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"--dtype is {self.dtype!r}", hint=f"there are {' and '.join(DTYPES)}")
        if not self.data:
            raise ConfigurationError(
                "--data is missing: text to train on", hint="files, folders or .jsonl; may be repeated"
            )
        for name, value, least in self._numbers():
            if value is None:
                continue
            if isinstance(value, float) and not isfinite(value):
                raise ConfigurationError(f"{name} is {value}, and must be a finite number")
            if value < least:
                raise ConfigurationError(f"{name} is {value:g}, and must be {least:g} or more")
        if self.own_share >= 1:
            raise ConfigurationError(f"--own-share is {self.own_share:g}, and must be less than 1")
        if self.seed >= SEEDS:
            raise ConfigurationError(f"--seed is {self.seed}, and must be less than 2**63")
        if self.cooldown > 1:
            raise ConfigurationError(f"--cooldown is {self.cooldown:g}, and must be 1 or less")
        if self.kind == "causal-lm":
            self._only_for("eagle and eagle3", taps=self.taps, own_embedding=self.own_embedding or None)
        elif self.copy_layers:
            raise ConfigurationError("--copy-layers is for causal-lm: a head's layers differ from the model's")
        elif self.length < self.unroll + 2:
            raise ConfigurationError(f"--length {self.length} is too short for --unroll {self.unroll}")
        if self.kind != "eagle3":
            self._only_for("eagle3", draft_vocab=self.draft_vocab)
        self._check_folder()

    def _numbers(self) -> tuple[tuple[str, float | None, float], ...]:
        return (
            ("--minutes", self.minutes, 0.0),
            ("--steps", self.steps, 1),
            ("--batch", self.batch, 1),
            ("--length", self.length, 8),
            ("--long-length", self.long_length, 8),
            ("--part", self.part, 1),
            ("--unroll", self.unroll, 1),
            ("--decay", self.decay, 0.0),
            ("--coupling", self.coupling, 0.0),
            ("--layers", self.layers, 1),
            ("--draft-vocab", self.draft_vocab, 8),
            ("--rate", self.rate, 0.0),
            ("--cooldown", self.cooldown, 0.0),
            ("--self-generate", self.self_generate, 0),
            ("--temperature", self.temperature, 0.0),
            ("--own-share", self.own_share, 0.0),
            ("--feature-weight", self.feature_weight, 0.0),
            ("--positions", self.positions, 0),
            ("--seed", self.seed, 0),
        )

    def _only_for(self, kinds: str, **given: Any) -> None:
        for name, value in given.items():
            if value is not None:
                raise ConfigurationError(f"--{name.replace('_', '-')} is for {kinds}, not for {self.kind}")

    def _check_folder(self) -> None:
        out = self.out
        if out.exists() and not out.is_dir():
            raise ConfigurationError(f"{out} is a file", hint="--out names the folder of the draft")
        check_writable(out)
        held = {file.name for file in out.iterdir()} - UNFINISHED if out.is_dir() else set()
        if held <= {OWN_TEXT} or CHECKPOINT in held:
            return
        if FACTS in held:
            raise ConfigurationError(
                f"{out} holds a draft, and no {CHECKPOINT} to train on from",
                hint="choose another --out, or remove that folder",
            )
        raise ConfigurationError(f"{out} holds something else", hint="--out names a new or empty folder for the draft")
