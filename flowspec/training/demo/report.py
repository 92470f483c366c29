"""Measure the shipped models and write the model card: `python -m flowspec.training.demo.report`.

Every figure in the card comes from a run of this command or from the `training.json` that training left beside the
weights. It refuses to judge them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowspec.demo import DRAFT_DIR, MODEL_DIR
from flowspec.demo.corpus import collect, texts
from flowspec.demo.prompts import DEMO_PROMPTS
from flowspec.training.demo.architecture import parameter_count
from flowspec.training.demo.card import CARD
from flowspec.training.demo.losses import bits_per_byte
from flowspec.training.demo.measure import agreement, beginnings, completions, loss_by_position, loss_on
from flowspec.training.demo.shipped import encode_sources, load_model
from flowspec.training.demo.tokenizer import load_tokenizer
from flowspec.training.sampling import complete, mean_repeated_share
from flowspec.training.windows import fixed_windows

TEMPERATURE = 0.8
PROMPT = 128
COMPLETION = 256


def measure(target_folder: Path, draft_folder: Path, corpus: Path | None, limit: int) -> dict[str, Any]:
    """All figures, by name; `limit` bounds the windows that losses and agreement are measured on."""
    tokenizer = load_tokenizer(target_folder)
    target, draft = load_model(target_folder), load_model(draft_folder)
    sources = collect(corpus)
    figures: dict[str, Any] = {
        "parameters": {"target": parameter_count(target), "draft": parameter_count(draft)},
        "megabytes": _megabytes(target_folder, draft_folder),
        "training": {"target": _training(target_folder), "draft": _training(draft_folder)},
        "windows": limit,
    }
    for split in ("validation", "heldout"):
        files = encode_sources(tokenizer, sources, split)
        tokens = sum(len(file.tokens) for file in files)
        size = sum(len(text.encode()) for text in texts(sources, split))
        windows = fixed_windows(files, 512, limit)
        loss = loss_on(target, windows)
        figures[split] = {"files": len(files), "tokens": tokens, "bytes": size, "loss": loss}
        figures[split]["bits_per_byte"] = bits_per_byte(loss, tokens, size)
    figures["loss_by_position"] = loss_by_position(target, fixed_windows(files, 2000, max(1, limit // 8)))
    figures["agreement"] = {"heldout": agreement(draft, target, windows[:, :-1])}
    originals = beginnings(files, 8, PROMPT + COMPLETION)
    prompts = originals[:, :PROMPT]
    figures["repeated"] = {"files": mean_repeated_share(originals[:, PROMPT:])}
    for name, temperature in (("greedy", 0.0), ("sampled", TEMPERATURE)):
        rows, share = completions(target, prompts, COMPLETION, temperature)
        figures["repeated"][name] = share
        figures["agreement"][name] = agreement(draft, target, rows[:, :-1], skip=PROMPT - 1)
    return figures


def examples(target_folder: Path, count: int = 120) -> str:
    """Sampled completions of the demo prompts, for a reader to judge."""
    tokenizer, target = load_tokenizer(target_folder), load_model(target_folder)
    blocks = []
    for prompt in DEMO_PROMPTS:
        row = complete(target, tokenizer(prompt, return_tensors="pt").input_ids, count, TEMPERATURE)[0]
        blocks.append(f"{prompt}⟦{tokenizer.decode(row)}⟧")
    return "\n\n-----\n\n".join(blocks)


def _megabytes(*folders: Path) -> float:
    return sum(part.stat().st_size for folder in folders for part in folder.iterdir() if part.is_file()) / 1e6


def _training(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return facts


def write_report(target: Path, draft: Path, corpus: Path | None, limit: int, card: Path | None) -> None:
    """Measure, print the figures as JSON and, where `card` is a path, write the model card there."""
    figures = measure(target, draft, corpus, limit)
    print(json.dumps(figures, indent=2))
    if card is not None:
        card.write_text(CARD.render(figures), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODEL_DIR, help="the target's folder")
    parser.add_argument("--draft", type=Path, default=DRAFT_DIR, help="the draft's folder")
    parser.add_argument("--corpus", type=Path, default=None, help="a folder of .py files (the standard library)")
    parser.add_argument("--limit", type=int, default=512, help="windows of 512 tokens to measure on, at most")
    parser.add_argument("--card", type=Path, default=None, help="write the model card to this file")
    parser.add_argument("--examples", action="store_true", help="print the demo prompts' completions as well")
    options = parser.parse_args(arguments)
    write_report(options.target, options.draft, options.corpus, options.limit, options.card)
    if options.examples:
        print(examples(options.target))


if __name__ == "__main__":
    main()
