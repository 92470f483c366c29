"""Train a draft for a target: the whole way from a recipe to a folder that a pipeline loads.

Read the text, let the target write some of its own if asked, distil, evaluate, export. An interrupted training exports
what there is, and goes on from its checkpoint when the same is asked again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_files import StoredHead, config_for
from flowspec.errors import ConfigurationError
from flowspec.model.device import find_device
from flowspec.model.text import load_tokenizer
from flowspec.model.weights import Checkpoint, resolve_model
from flowspec.training import evaluation
from flowspec.training.beginning import begun_from, weights_digest
from flowspec.training.distillation import Distillation
from flowspec.training.documents import Document, read_documents
from flowspec.training.draft_card import card
from flowspec.training.given_head import given_head
from flowspec.training.heads import build_student, frequent_tokens, head_taps
from flowspec.training.loop import Plan, Trainer
from flowspec.training.optimizer import Optimizers
from flowspec.training.own_text import OwnText
from flowspec.training.progress import Reporter
from flowspec.training.recipe import MINUTES, WHOLE_VOCABULARY, Recipe
from flowspec.training.schedule import Schedule
from flowspec.training.sharpness import measure_sharpness
from flowspec.training.small_lm import build_small_lm
from flowspec.training.storage import CHECKPOINT, FACTS, OWN_TEXT, replacing
from flowspec.training.student import Student
from flowspec.training.target import Target
from flowspec.training.texts import Texts, read_texts
from flowspec.training.windows import TokenFile, WindowStream, fixed_windows

VALIDATION_TOKENS: Final = 32_768
SHARPNESS_TOKENS: Final = 8_192
"""Of them; a mean of so many guesses is as good as it needs to be."""
TOLD: Final = (
    *("unroll", "decay", "coupling", "layers", "copy_layers", "draft_vocab", "own_embedding", "feature_weight"),
    *("self_generate", "temperature", "own_share", "seed"),
)
"""What of a recipe is kept in training.json; none of it changes when a training is resumed."""
PACE: Final = ("minutes", "steps", "batch", "length", "long_length", "rate", "cooldown", "dtype")
"""What may change then, and is kept with the step from which on it was so."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a training."""

    folder: Path
    finished: bool
    """False: it was stopped, and can be resumed."""
    facts: dict[str, Any]
    unsaved: str | None = None
    """Why there is no checkpoint of its last step; None: there is one."""


def train_draft(
    recipe: Recipe,
    reporter: Reporter,
    *,
    stop: Callable[[], bool] = lambda: False,
    documents: Iterable[Document] | None = None,
) -> Outcome:
    """Train, evaluate and export. `stop` is asked after every step; `documents` replace what `recipe.data` names.

    ConfigurationError, ModelError: what the user has to change. MemoryErrors of an accelerator are told as such.
    """
    recipe.check()
    try:
        return _Training(recipe, reporter, documents).run(stop)
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"the device {recipe.device} has too little memory for this training",
            hint="give a smaller --batch, --part 1, or a smaller --length and --long-length",
        ) from error


class _Training:
    def __init__(self, recipe: Recipe, reporter: Reporter, documents: Iterable[Document] | None) -> None:
        self.recipe, self.reporter = recipe, reporter
        self.device = torch.device(find_device(recipe.device))
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)
        self.checkpoint = Checkpoint(resolve_model(recipe.model))
        self.given = self._given()
        tokenizer = load_tokenizer(self.checkpoint.path)
        eos = min(self.checkpoint.eos_token_ids, default=tokenizer.eos_token_id)
        if documents is None:
            documents = read_documents(recipe.data, recipe.suffixes)
        self.texts = read_texts(documents, tokenizer, eos, recipe.length)
        self._tell_text()
        taps = () if recipe.kind == "causal-lm" else self._taps()
        self.target = Target.load(self.checkpoint, taps, device=self.device, dtype=self.dtype)
        self.student = self._student(taps, tokenizer)
        if recipe.begin is not None:
            self.student.begin(Path(resolve_model(str(recipe.begin))))
        # Weights of its own: what the head borrows from the target is neither trained nor stored.
        self.parameters = sum(each.numel() for each in self.student.module.parameters() if each.requires_grad)

    def run(self, stop: Callable[[], bool]) -> Outcome:
        recipe = self.recipe
        own = self._own_text()
        schedule = self._schedule()
        windows = self._validation()
        distillation = Distillation(
            self.student, self.target, decay=recipe.decay, coupling=recipe.coupling, dtype=self.dtype
        )
        plan = Plan(
            schedule,
            recipe.out / CHECKPOINT,
            batch=recipe.batch,
            length=recipe.length,
            long_length=self._long_length(),
            part=recipe.part,
            checkpoint_seconds=recipe.checkpoint_seconds,
            evaluate_seconds=recipe.evaluate_seconds,
        )
        self.reporter.say(f"{recipe.kind} draft with {self.parameters:,} parameters of its own, on {self.device}")
        trainer = Trainer(
            self.student.module,
            distillation,
            WindowStream(
                [*self.texts.train, *own * repeats(own, self.texts.train_tokens, recipe.own_share)], recipe.seed
            ),
            plan,
            self.reporter,
            optimizers=Optimizers(self.student.module, recipe.rate),
            evaluate=lambda: self._evaluate(windows),
            settings=self._settings(own),
            pace=self._pace(),
        )
        resumed = trainer.totals.steps
        finished = trainer.run(stop)
        if finished and trainer.totals.steps == resumed and (told := self._finished_earlier(resumed)):
            self.reporter.say(f"already finished, at step {resumed}: nothing was trained")
            if "acceptance" not in told:
                self._measure_acceptance(told)
            return Outcome(recipe.out, True, told)
        facts = self._facts(trainer, finished, own, windows)
        self._export(facts)
        if finished:
            self._measure_acceptance(facts)
        return Outcome(recipe.out, finished, facts, trainer.unsaved)

    # ---- before

    def _given(self) -> StoredHead | None:
        recipe = self.recipe
        if recipe.begin is None or recipe.kind == "causal-lm":
            return None
        return given_head(resolve_model(str(recipe.begin)), self.checkpoint, recipe, self.reporter.say)

    def _taps(self) -> tuple[int, ...]:
        if self.given is not None:
            return self.given.config.taps
        return head_taps(self.recipe.kind, self.checkpoint.layer_count, self.recipe.taps, self.checkpoint.path)

    def _student(self, taps: tuple[int, ...], tokenizer: Any) -> Student:
        recipe = self.recipe
        if recipe.kind == "causal-lm":
            return build_small_lm(
                self.target.model,
                tokenizer,
                layers=recipe.layers,
                copied=recipe.copy_layers,
                seed=recipe.seed,
                device=self.device,
            )
        config, tokens = self._new_head(taps) if self.given is None else (self.given.config, self.given.target_tokens)
        return build_student(
            config,
            self.target,
            steps=recipe.unroll,
            target_tokens=tokens,
            feature_weight=recipe.feature_weight,
            seed=recipe.seed,
            device=self.device,
        )

    def _new_head(self, taps: tuple[int, ...]) -> tuple[HeadConfig, torch.Tensor | None]:
        """What a head is made of that begins with nothing, and its draft vocabulary."""
        recipe, whole = self.recipe, self.checkpoint.vocab_size
        changes: dict[str, Any] = {"layer_count": recipe.layers, "own_embedding": recipe.own_embedding}
        tokens = None
        size = recipe.draft_vocab
        if size is None and recipe.kind == "eagle3" and whole > WHOLE_VOCABULARY:
            size = WHOLE_VOCABULARY
        if size is not None and size < whole:
            ends = tuple(token for token in self.checkpoint.eos_token_ids if token < whole)
            counts = self.texts.counts(whole)
            chosen = frequent_tokens(counts, size, ends)
            share = counts[chosen].sum() / max(1, counts.sum())
            self.reporter.say(f"draft vocabulary: {size} of {whole} tokens, {100 * share:.1f} % of the text")
            tokens, changes["draft_vocab_size"] = torch.from_numpy(chosen), len(chosen)
        return config_for(recipe.kind, self.checkpoint, taps, **changes), tokens

    def _tell_text(self) -> None:
        texts = self.texts
        how = "the end of each" if texts.by_tail else f"{len(texts.heldout)} whole ones"
        self.reporter.say(
            f"{len(texts.train)} texts with {texts.train_tokens:,} tokens to train on; "
            f"{texts.heldout_tokens:,} tokens held out ({how})"
        )
        length, limit = self.recipe.length, self.checkpoint.context_limit
        if length > limit:
            raise ConfigurationError(f"--length is {length}, and the model's longest context {limit} tokens")
        if texts.train_tokens < self._needed(length):
            raise ConfigurationError(
                f"{texts.train_tokens} tokens are too little text for a batch of {self.recipe.batch} windows of "
                f"{self.recipe.length} tokens",
                hint="give more text with --data, or a smaller --batch or --length",
            )

    def _needed(self, length: int) -> int:
        """Tokens from which a batch of windows of `length` can be cut, wherever the first one begins."""
        count = max(1, self.recipe.batch * self.recipe.length // length)
        return (count + 1) * length + 1

    def _long_length(self) -> int:
        """Of the last part's windows: as asked, if the model and the text have room for it."""
        asked = min(self.recipe.long_length, self.checkpoint.context_limit)
        enough = self.texts.train_tokens >= self._needed(asked)
        return max(self.recipe.length, asked) if enough else self.recipe.length

    def _own_text(self) -> list[TokenFile]:
        """The target's own completions, written once and kept beside the checkpoint."""
        recipe, path = self.recipe, self.recipe.out / OWN_TEXT
        if not recipe.self_generate:
            return []
        length = min(recipe.prompt_length, recipe.length // 2)
        own = OwnText(
            path,
            self.target.digest(),
            fixed_windows(self.texts.train, length - 1, recipe.self_generate).to(self.device),
            recipe.length - length,
            recipe.temperature,
            recipe.seed,
        )
        return own.files(self.target.model, self.reporter.say)

    def _schedule(self) -> Schedule:
        minutes = self.recipe.minutes
        if minutes is None and self.recipe.steps is None:
            minutes = MINUTES
        return Schedule(minutes, self.recipe.steps, cooldown=self.recipe.cooldown)

    def _validation(self) -> torch.Tensor:
        return fixed_windows(self.texts.heldout, self.recipe.length, max(1, VALIDATION_TOKENS // self.recipe.length))

    def _pace(self) -> dict[str, Any]:
        return {name: getattr(self.recipe, name) for name in PACE}

    def _settings(self, own: list[TokenFile]) -> dict[str, Any]:
        """What a checkpoint must have been made with to be resumed."""
        recipe = self.recipe
        return {
            "kind": recipe.kind,
            "target": self.target.digest(),
            "layers": recipe.layers,
            "taps": list(self.student.taps),
            "unroll": self.student.steps,
            "own embedding": recipe.own_embedding,
            "copied layers": recipe.copy_layers,
            "begin": None if recipe.begin is None else weights_digest(recipe.begin),
            "decay": recipe.decay,
            "coupling": recipe.coupling,
            "feature weight": recipe.feature_weight,
            "draft vocabulary": self.student.head.weight.size(0),
            **self.student.identity,
            "text": Texts([*self.texts.train, *own], [], False).digest(),
            "own text's share": recipe.own_share,
            "seed": recipe.seed,
        }

    # ---- after

    def _finished_earlier(self, steps: int) -> dict[str, Any] | None:
        """The facts beside the draft, when they are those of a training that was over at that step."""
        try:
            facts: Any = json.loads((self.recipe.out / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        over = isinstance(facts, dict) and facts.get("finished") is True and facts.get("steps") == steps
        return facts if over and any(self.recipe.out.glob("*.safetensors")) else None

    def _facts(self, trainer: Trainer, finished: bool, own: list[TokenFile], windows: torch.Tensor) -> dict[str, Any]:
        recipe = self.recipe
        found = self._evaluate(windows)
        return {
            "kind": recipe.kind,
            "target": recipe.model,
            "target_digest": self.target.digest(),
            **({"begin": begun_from(recipe.begin)} if recipe.begin else {}),
            "steps": trainer.totals.steps,
            "tokens": trainer.totals.tokens,
            "seconds": round(trainer.totals.seconds),
            "finished": finished,
            "text_tokens": self.texts.train_tokens,
            "heldout_tokens": self.texts.heldout_tokens,
            "sampled_tokens": sum(len(file.tokens) for file in own),
            "parameters": self.parameters,
            "sharpness": self._sharpness(windows),
            "heldout": evaluation.table(found),
            "note": recipe.note,
            **self._told(trainer.stretches),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "flowspec": version("flowspec"),
        }

    def _evaluate(self, windows: torch.Tensor) -> list[evaluation.Agreement]:
        self.student.module.eval()
        found = evaluation.agreement(self.student, self.target, windows, dtype=self.dtype)
        self.reporter.say(evaluation.described(found))
        return found

    def _sharpness(self, windows: torch.Tensor) -> float | None:
        """None: a small language model has no place for it."""
        if not self.student.taps:
            return None
        part = windows[: max(1, SHARPNESS_TOKENS // self.recipe.length)]
        return measure_sharpness(self.student, self.target, part, dtype=self.dtype)

    def _export(self, facts: dict[str, Any]) -> None:
        with replacing(self.recipe.out) as scratch:
            self.student.export(scratch, facts)
            (scratch / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (scratch / "README.md").write_text(card(facts), encoding="utf-8")

    def _measure_acceptance(self, facts: dict[str, Any]) -> None:
        """The draft as it was stored, in trees; its figures join the facts."""
        if not self.recipe.positions:
            return
        drafter = self.student.drafter(self.recipe.out, "cpu")
        found = evaluation.acceptance_length(drafter, self.checkpoint, self.texts.heldout, self.recipe.positions)
        if not found:
            self.reporter.say("the texts held out are too short to measure the acceptance length on")
            return
        facts["acceptance"] = found
        self.reporter.say(
            f"acceptance: {found['tokens_per_forward']:.2f} tokens per forward of the model, with trees of "
            f"{found['tree']} drafts (at temperature 0, {found['positions']} places in held-out text)"
        )
        with replacing(self.recipe.out) as scratch:
            (scratch / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (scratch / "README.md").write_text(card(facts), encoding="utf-8")

    def _told(self, stretches: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        """The settings, those at the end where a later run changed them, and then also how they were before."""
        recipe = {name: getattr(self.recipe, name) for name in TOLD} | {"taps": list(self.student.taps)}
        told: dict[str, Any] = {"recipe": recipe | (stretches[-1][1] if stretches else self._pace())}
        if len(stretches) > 1:
            told["stretches"] = [{"from_step": step, **pace} for step, pace in stretches]
        return told


def repeats(own: list[TokenFile], text_tokens: int, share: float) -> int:
    """How often the target's own text has to come beside `text_tokens` tokens of other text to be that share of all."""
    tokens = sum(len(file.tokens) for file in own)
    return max(1, round(share / (1 - share) * text_tokens / tokens)) if tokens else 1
