"""Make the demo model: ``python -m flowspec.demo.train all``, or one part of it at a time.

``tokenizer`` learns the vocabulary, ``target`` trains the target, ``settle`` unlearns its loops, ``draft`` distils the
draft from it, ``snapshot`` writes a running training's last checkpoint out as a usable model, ``all`` does everything
and ends with the report.
A part that is interrupted resumes from its checkpoint; its time budget then starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from flowspec.demo import DRAFT_DIR, MODEL_DIR
from flowspec.demo.architecture import draft_from, new_model, parameter_count, target_config
from flowspec.demo.corpus import collect, texts
from flowspec.demo.data import TokenFile, WindowStream, encode_sources, fixed_windows
from flowspec.demo.loop import Plan, Totals, Trainer
from flowspec.demo.losses import Loss, Unlikelihood, distillation_loss, next_token_loss, settling_loss
from flowspec.demo.report import write_report
from flowspec.demo.sampling import sampled_files
from flowspec.demo.schedule import Schedule
from flowspec.demo.storage import export, load_checkpoint, load_model
from flowspec.demo.tokenizer import load_tokenizer, train_tokenizer

VALIDATION_TOKENS: Final = 49_152
SAMPLING_TEMPERATURE: Final = 0.8
SAMPLING_BATCH: Final = 256
SAMPLE_PROMPT: Final = 64
SAMPLE_LENGTH: Final = 448
REPORT_WINDOWS: Final = 512
SETTLING: Final = {"compile": False, "peak": 0.2, "long_length": 512, "weight": 1.0}
"""The model writes text between two steps, so nothing is compiled; what it learned must not be forgotten."""


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


def run_draft(options: argparse.Namespace) -> Totals:
    """Distil the draft from the exported target and export it."""
    tokenizer = load_tokenizer(options.target)
    target = load_model(options.target).requires_grad_(False).to(options.device)
    draft = draft_from(target, options.seed).to(options.device)
    print(f"draft: {parameter_count(draft)} parameters", flush=True)
    files = encode_sources(tokenizer, collect(options.corpus), "train")
    own = _own_text(target, files, options)
    totals = _train(draft, distillation_loss(draft, target), tokenizer, options, "draft", files + own)
    sampled_tokens = sum(len(file.tokens) for file in own)
    export(draft, tokenizer, options.draft, {**_facts(totals, options), "sampled_tokens": sampled_tokens})
    return totals


def run_snapshot(options: argparse.Namespace) -> None:
    """Export the target as its last checkpoint has it."""
    state = load_checkpoint(options.work / "target.pt")
    if state is None:
        raise SystemExit(f"no checkpoint in {options.work}")
    tokenizer = load_tokenizer(options.target)
    model = new_model(target_config(vocab_size=len(tokenizer)), options.seed)
    model.load_state_dict(state["model"])
    export(model, tokenizer, options.out, _facts(Totals(*state["totals"]), options))


def run_all(options: argparse.Namespace) -> None:
    """Tokenizer, target (settled), draft and report with the default budgets."""
    run_tokenizer(options)
    run_target(argparse.Namespace(**{**vars(options), "minutes": options.target_minutes, "further": False}))
    run_settle(argparse.Namespace(**{**vars(options), **SETTLING, "minutes": options.settle_minutes}))
    run_draft(argparse.Namespace(**{**vars(options), "minutes": options.draft_minutes}))
    write_report(options.target, options.draft, options.corpus, REPORT_WINDOWS, options.target / "README.md")


def _earlier(folder: Path) -> Totals:
    """What the exported model in ``folder`` was already trained on."""
    facts = json.loads((folder / "training.json").read_text())
    return Totals(facts["steps"], facts["tokens"])


def _facts(totals: Totals, options: argparse.Namespace) -> dict[str, Any]:
    python = platform.python_version()
    return {"steps": totals.steps, "tokens": totals.tokens, "python": python, "note": options.note}


def _add_note(options: argparse.Namespace) -> argparse.Namespace:
    """``options`` with the note that the target carries put before its own."""
    facts = json.loads((options.target / "training.json").read_text())
    return argparse.Namespace(**{**vars(options), "note": " ".join(filter(None, (facts["note"], options.note)))})


def _own_text(target: Any, files: list[TokenFile], options: argparse.Namespace) -> list[TokenFile]:
    """The target's own completions, which the draft will meet in use more often than library text."""
    if not options.samples:
        return []
    prompts = fixed_windows(files, SAMPLE_PROMPT - 1, options.samples).to(options.device)
    started = time.time()
    own = sampled_files(target, prompts, SAMPLE_LENGTH, SAMPLING_TEMPERATURE, SAMPLING_BATCH)
    print(f"sampled {len(own)} windows in {time.time() - started:.0f} s", flush=True)
    return own


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
    """Train on ``minimised``, which is ``loss`` unless it says more; ``loss`` is what is reported."""
    stream = WindowStream(files, options.seed)
    held = encode_sources(tokenizer, collect(options.corpus), "validation")
    validation = fixed_windows(held, options.length, max(1, VALIDATION_TOKENS // options.length))
    plan = Plan(
        Schedule.for_minutes(options.minutes, options.steps, options.cooldown, options.peak),
        options.work / f"{part}.pt",
        batch=options.batch,
        length=options.length,
        long_length=options.long_length,
    )
    minimised = minimised or loss
    compiled = torch.compile(minimised, dynamic=False) if options.compile else minimised
    trainer = Trainer(model, loss, stream, plan, compiled, before)
    return trainer.run(validation)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--target", type=Path, default=MODEL_DIR, help="the target's folder")
    common.add_argument("--draft", type=Path, default=DRAFT_DIR, help="the draft's folder")
    common.add_argument("--work", type=Path, default=Path("build/demo"), help="the checkpoints' folder")
    common.add_argument("--corpus", type=Path, default=None, help="a folder of .py files (the standard library)")
    common.add_argument("--steps", type=int, default=None, help="stop after so many steps in all")
    common.add_argument("--batch", type=int, default=16, help="windows in a batch")
    common.add_argument("--length", type=int, default=512, help="tokens in a window")
    common.add_argument("--long-length", type=int, default=2048, help="tokens in a window in the last part")
    common.add_argument("--cooldown", type=float, default=0.4, help="the share of the time in which the rate falls")
    common.add_argument("--peak", type=float, default=1.0, help="factor on the learning rates")
    common.add_argument("--samples", type=int, default=0, help="own completions of the target to distil on as well")
    common.add_argument("--note", default="", help="a sentence for the model card on how this run was special")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--compile", action=argparse.BooleanOptionalAction, default=shutil.which("c++") is not None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("tokenizer", parents=[common]).set_defaults(run=run_tokenizer)
    for name, run, minutes in (("target", run_target, 65.0), ("draft", run_draft, 25.0)):
        part = parts.add_parser(name, parents=[common])
        part.add_argument("--minutes", type=float, default=minutes, help="the time budget; the rate is zero at its end")
        part.set_defaults(run=run)
    parts.choices["target"].add_argument(
        "--further", action="store_true", help="start from the weights that --target already holds"
    )
    settle = parts.add_parser("settle", parents=[common])
    settle.add_argument("--minutes", type=float, default=20.0, help="the time budget")
    settle.add_argument("--weight", type=float, default=1.0, help="of what repeats itself, against the text's loss")
    settle.set_defaults(run=run_settle, **SETTLING)
    snapshot = parts.add_parser("snapshot", parents=[common])
    snapshot.add_argument("--out", type=Path, default=MODEL_DIR)
    snapshot.set_defaults(run=run_snapshot)
    everything = parts.add_parser("all", parents=[common])
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


if __name__ == "__main__":
    main()
