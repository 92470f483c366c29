"""Prompts that the demo model has never seen: `python -m flowspec.bench.heldout FILE [--count N]`.

Beginnings of files that were held out from its training, ended inside a line. The command writes them as questions,
which `flowspec bench` and rehearsals take with `--prompts`: the same ones wherever the standard library is the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from flowspec.demo.corpus import collect, texts
from flowspec.errors import ConfigurationError
from flowspec.program import run_program

COUNT = 24
CHARACTERS = 600
SHORTEST = 4000
"""Characters of a file that is worth continuing."""


def heldout_prompts(count: int) -> list[str]:
    """Spread over the library. `ConfigurationError` where it has fewer."""
    files = [text for text in texts(collect(), "heldout") if len(text) > SHORTEST]
    if not 1 <= count <= len(files):
        raise ConfigurationError(
            f"{count} prompts: there are 1 to {len(files)} held-out files in this Python's library"
        )
    step = len(files) / count
    return [files[int(index * step)][:CHARACTERS].rstrip() for index in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write beginnings of held-out files as questions.")
    parser.add_argument("file", type=Path, help="where to, a question a line")
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many [{COUNT}]")
    given = parser.parse_args(arguments)
    lines = [
        json.dumps({"question_id": number, "category": "heldout", "turns": [prompt]})
        for number, prompt in enumerate(heldout_prompts(given.count), start=1)
    ]
    try:
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{given.file} cannot be written: {error.strerror or error}") from None
    print(f"wrote {len(lines)} questions to {given.file}", flush=True)


if __name__ == "__main__":
    run_program(main)
