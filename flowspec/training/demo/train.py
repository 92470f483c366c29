"""Make the demo's models: `python -m flowspec.training.demo all`, or one part of it at a time.

`tokenizer` learns the vocabulary, `target` trains the target, `settle` unlearns its loops, `corpus` writes the training
text out as files, `drafts` distils the drafts from the target by `flowspec train-draft`'s own code, `snapshot` writes a
running training's last checkpoint out as a usable model, `all` does everything and ends with the report.
A part that is interrupted resumes from its checkpoint, and ends when its time budget is spent in all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.demo import DRAFT_DIR, EAGLE3_DEEP_DIR, EAGLE3_DIR, EAGLE_DIR, MODEL_DIR
from flowspec.demo.corpus import Source, collect, texts
from flowspec.training.demo.architecture import new_model, parameter_count, target_config
from flowspec.training.demo.losses import Unlikelihood, mean_loss, next_token_loss, settling_loss
from flowspec.training.demo.report import write_report
from flowspec.training.demo.shipped import encode_sources, export, load_model
from flowspec.training.demo.tokenizer import load_tokenizer, train_tokenizer
from flowspec.training.documents import Document
from flowspec.training.draft import train_draft
from flowspec.training.loop import Loss, Plan, Totals, Trainer, restore
from flowspec.training.progress import Lines
from flowspec.training.recipe import Recipe
from flowspec.training.schedule import Schedule
from flowspec.training.storage import CHECKPOINT, FACTS, load_checkpoint
from flowspec.training.windows import TokenFile, WindowStream, fixed_windows

VALIDATION_TOKENS: Final = 49_152
REPORT_WINDOWS: Final = 512
SETTLING: Final = {"compile": False, "peak": 0.2, "long_length": 512, "weight": 1.0}
"""The model writes text between two steps, so nothing is compiled; what it learned must not be forgotten."""
DRAFTING: Final = {
    "unroll": 5,
    "decay": 0.8,
    "coupling": 0.0,
    "taps": None,
    "temperature": 0.8,
    "own_share": 0.0,
    "positions": 200,
}


@dataclass(frozen=True, slots=True)
class Shipped:
    """A draft that comes with the demo."""

    kind: str
    folder: Path
    layers: int = 1
    grown_from: str | None = None
    """The name of the shipped draft with whose weights it begins."""


DRAFTS: Final = {
    "causal-lm": Shipped("causal-lm", DRAFT_DIR),
    "eagle": Shipped("eagle", EAGLE_DIR),
    "eagle3": Shipped("eagle3", EAGLE3_DIR),
    "eagle3-deep": Shipped("eagle3", EAGLE3_DEEP_DIR, layers=3, grown_from="eagle3"),
}
"""By name; one that grows from another comes after it."""


def run_tokenizer(options: argparse.Namespace) -> None:
    """Learn the vocabulary from the training files and store it where the target will lie."""
    tokenizer = train_tokenizer(texts(collect(options.corpus), "train"))
    tokenizer.save_pretrained(str(options.target))


def run_target(options: argparse.Namespace) -> Totals:
    """Train the target and export it."""
    tokenizer = load_tokenizer(options.target)
    model = new_model(target_config(vocab_size=len(tokenizer)), options.seed)
    before = Totals()
    if options.further:
        model.load_state_dict(load_model(options.target).state_dict())
        before = _earlier(options.target)
    model.to(options.device)
    print(f"target: {parameter_count(model)} parameters", flush=True)
    files = encode_sources(tokenizer, collect(options.corpus), "train")
    totals = _train(model, next_token_loss(model), tokenizer, options, "target", files, before)
    export(model, tokenizer, options.target, _facts(totals, options))
    return totals


def run_settle(options: argparse.Namespace) -> Totals:
    """Train the exported target on, against loops in its own text, and export it again."""
    tokenizer = load_tokenizer(options.target)
    model = load_model(options.target).to(options.device)
    before = _earlier(options.target)
    files = encode_sources(tokenizer, collect(options.corpus), "train")
    loss = settling_loss(model, Unlikelihood(weight=options.weight))
    totals = _train(model, next_token_loss(model), tokenizer, options, "settle", files, before, loss)
    export(model, tokenizer, options.target, _facts(totals, _add_note(options)))
    return totals


def run_corpus(options: argparse.Namespace) -> None:
    """Write the training text, and what is held out of it, as files: what `flowspec train-draft --data` takes."""
    for source in collect(options.corpus):
        file: Path = options.out / source.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source.text, encoding="utf-8")
    print(f"wrote the corpus to {options.out}", flush=True)


def run_drafts(options: argparse.Namespace) -> None:
    """Distil each of the drafts in `options.names` from the exported target."""
    documents = [_document(source) for source in collect(options.corpus)]
    for name in options.names:
        shipped, work = DRAFTS[name], options.work / name
        begins_as = name if options.further else shipped.grown_from
        recipe = Recipe(
            model="demo" if options.target == MODEL_DIR else str(options.target),
            kind=shipped.kind,
            data=(Path("the standard library's sources"),),
            out=work,
            begin=DRAFTS[begins_as].folder if begins_as else None,
            minutes=options.minutes,
            steps=options.steps,
            batch=options.batch,
            length=options.length,
            long_length=options.long_length,
            layers=shipped.layers,
            taps=options.taps if shipped.kind == "eagle3" else None,
            unroll=options.unroll,
            decay=options.decay,
            coupling=options.coupling,
            self_generate=options.samples,
            temperature=options.temperature,
            own_share=options.own_share,
            rate=options.peak,
            cooldown=options.cooldown,
            device=options.device,
            seed=options.seed,
            note=options.note,
            positions=options.positions,
        )
        train_draft(recipe, Lines(), documents=documents)
        _ship(work, shipped.folder)


def _document(source: Source) -> Document:
    """Validation files are held out from drafts, too: they measure what the drafts learned."""
    return Document(source.path, source.text, (), source.split != "train")


def _ship(work: Path, folder: Path) -> None:
    """Copy a finished draft to where it is shipped, without what only training needs."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(work.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        if file.suffix != Path(CHECKPOINT).suffix:
            shutil.copyfile(file, folder / file.name)


def run_snapshot(options: argparse.Namespace) -> None:
    """Export the target as its last checkpoint has it."""
    state = load_checkpoint(options.work / "target.pt")
    if state is None:
        raise SystemExit(f"no checkpoint in {options.work}")
    tokenizer = load_tokenizer(options.target)
    model = new_model(target_config(vocab_size=len(tokenizer)), seed=0)
    restore(model, state["model"], options.work / "target.pt")
    export(model, tokenizer, options.out, _facts(Totals(*state["totals"]), options))


def run_all(options: argparse.Namespace) -> None:
    """Tokenizer, target (settled), drafts and report with the default budgets."""
    given = {**vars(options), "further": False}
    run_tokenizer(options)
    run_target(argparse.Namespace(**{**given, "minutes": options.target_minutes}))
    run_settle(argparse.Namespace(**{**given, **SETTLING, "minutes": options.settle_minutes}))
    run_drafts(argparse.Namespace(**{**given, **DRAFTING, "minutes": options.draft_minutes, "names": list(DRAFTS)}))
    write_report(options.target, DRAFT_DIR, options.corpus, REPORT_WINDOWS, options.target / "README.md")


def _earlier(folder: Path) -> Totals:
    """What the exported model in `folder` was already trained on."""
    facts = json.loads((folder / FACTS).read_text())
    return Totals(facts["steps"], facts["tokens"])


def _facts(totals: Totals, options: argparse.Namespace) -> dict[str, Any]:
    python = platform.python_version()
    return {"steps": totals.steps, "tokens": totals.tokens, "python": python, "note": options.note}


def _add_note(options: argparse.Namespace) -> argparse.Namespace:
    """`options` with the note that the target carries put before its own."""
    facts = json.loads((options.target / FACTS).read_text())
    return argparse.Namespace(**{**vars(options), "note": " ".join(filter(None, (facts["note"], options.note)))})


def _train(
    model: Any,
    loss: Loss,
    tokenizer: Any,
    options: argparse.Namespace,
    part: str,
    files: list[TokenFile],
    before: Totals | None = None,
    minimised: Loss | None = None,
) -> Totals:
    """Train on `minimised`, which is `loss` unless it says more; `loss` is what is reported."""
    held = encode_sources(tokenizer, collect(options.corpus), "validation")
    validation = fixed_windows(held, options.length, max(1, VALIDATION_TOKENS // options.length))
    plan = Plan(
        Schedule(options.minutes, options.steps, cooldown=options.cooldown, peak=options.peak),
        options.work / f"{part}.pt",
        batch=options.batch,
        length=options.length,
        long_length=options.long_length,
    )
    reporter = Lines()

    def evaluate() -> None:
        found = mean_loss(loss, validation, next(model.parameters()).device)
        reporter.say(f"validation {found:.4f}")

    minimised = minimised or loss
    compiled = torch.compile(minimised, dynamic=False) if options.compile else minimised
    trainer = Trainer(
        model, compiled, WindowStream(files, options.seed), plan, reporter, evaluate=evaluate, before=before
    )
    trainer.run()
    evaluate()
    return trainer.totals


def _places() -> argparse.ArgumentParser:
    """Where things lie. A new parser each time: parsers share their parents' options, defaults included."""
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--target", type=Path, default=MODEL_DIR, help="the target's folder")
    places.add_argument("--work", type=Path, default=Path("build/demo"), help="the checkpoints' folder")
    places.add_argument("--corpus", type=Path, default=None, help="a folder of .py files (the standard library)")
    return places


def _card() -> argparse.ArgumentParser:
    """What whoever writes a model card reads."""
    card = argparse.ArgumentParser(add_help=False)
    card.add_argument("--note", default="", help="a sentence for the model card on how this run was special")
    return card


def _training() -> argparse.ArgumentParser:
    """What every training reads."""
    training = argparse.ArgumentParser(add_help=False, parents=[_places(), _card()])
    training.add_argument("--steps", type=int, default=None, help="stop after so many steps in all")
    training.add_argument("--batch", type=int, default=16, help="windows in a batch")
    training.add_argument("--length", type=int, default=512, help="tokens in a window")
    training.add_argument("--long-length", type=int, default=2048, help="tokens in a window in the last part")
    training.add_argument("--cooldown", type=float, default=0.4, help="the share of the time in which the rate falls")
    training.add_argument("--peak", type=float, default=1.0, help="factor on the learning rates")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return training


def _compiling() -> argparse.ArgumentParser:
    compiling = argparse.ArgumentParser(add_help=False)
    able = shutil.which("c++") is not None
    compiling.add_argument("--compile", action=argparse.BooleanOptionalAction, default=able)
    return compiling


def _further() -> argparse.ArgumentParser:
    further = argparse.ArgumentParser(add_help=False)
    further.add_argument("--further", action="store_true", help="start from the shipped weights, not from new ones")
    return further


def _sampling() -> argparse.ArgumentParser:
    sampling = argparse.ArgumentParser(add_help=False)
    sampling.add_argument("--samples", type=int, default=0, help="own completions of the target to distil on as well")
    return sampling


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("tokenizer", parents=[_places()]).set_defaults(run=run_tokenizer)
    target = parts.add_parser("target", parents=[_training(), _compiling(), _further()])
    target.add_argument("--minutes", type=float, default=65.0, help="the time budget; the rate is zero at its end")
    target.set_defaults(run=run_target)
    drafts = parts.add_parser("drafts", parents=[_training(), _further(), _sampling()])
    drafts.add_argument("--names", nargs="+", choices=list(DRAFTS), default=list(DRAFTS), help="which drafts")
    drafts.add_argument("--minutes", type=float, default=25.0, help="the time budget of each")
    drafts.add_argument("--unroll", type=int, help="draft steps that a head is trained for")
    drafts.add_argument("--decay", type=float, help="how much less each deeper draft step counts")
    drafts.add_argument("--coupling", type=float, help="weight of not drawing the target's token with the same noise")
    drafts.add_argument("--temperature", type=float, help="of the target's own completions")
    drafts.add_argument("--own-share", type=float, help="the share of the training that these are made")
    drafts.add_argument("--positions", type=int, help="trees to measure the acceptance length with")
    drafts.add_argument("--taps", type=int, nargs=3, help="hidden states that eagle3 reads")
    drafts.set_defaults(run=run_drafts, long_length=1024, batch=8, **DRAFTING)
    corpus = parts.add_parser("corpus", parents=[_places()])
    corpus.add_argument("--out", type=Path, default=Path("build/demo/corpus"), help="where the files go")
    corpus.set_defaults(run=run_corpus)
    settle = parts.add_parser("settle", parents=[_training(), _compiling()])
    settle.add_argument("--minutes", type=float, default=20.0, help="the time budget")
    settle.add_argument("--weight", type=float, default=1.0, help="of what repeats itself, against the text's loss")
    settle.set_defaults(run=run_settle, **SETTLING)
    snapshot = parts.add_parser("snapshot", parents=[_places(), _card()])
    snapshot.add_argument("--out", type=Path, default=MODEL_DIR)
    snapshot.set_defaults(run=run_snapshot)
    everything = parts.add_parser("all", parents=[_training(), _compiling(), _sampling()])
    everything.add_argument("--target-minutes", type=float, default=65.0)
    everything.add_argument("--settle-minutes", type=float, default=20.0)
    everything.add_argument("--draft-minutes", type=float, default=25.0)
    everything.set_defaults(run=run_all)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the part that the command line names."""
    options = _parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "pid").write_text(f"{os.getpid()}\n")
    options.run(options)
