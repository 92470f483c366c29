"""The training text: the standard library's own Python sources, split by file.

What is in it: every ``.py`` file under ``sysconfig.get_paths()["stdlib"]`` of the running Python, CPython's own test
suite (the ``test`` folders) included. What is not: installed packages, machine-made tables (code pages, the pydoc
topics, stringprep and entity tables), files over 400 KB, files that are no UTF-8, empty files, and second copies of
the same text.

The split is a fixed hash of a file's path inside the library, so a file never changes sides between runs, machines
or Python versions, and a held-out file is never seen in training, by the tokenizer either.

The module knows text only: it refuses to know tokens.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Split = Literal["train", "validation", "heldout"]

MAX_BYTES: Final = 400_000
SKIPPED_FOLDERS: Final = frozenset({"site-packages", "dist-packages", "__pycache__", "pydoc_data", "cjkencodings"})
SKIPPED_PREFIXES: Final = (
    "encodings/cp",
    "encodings/iso8859",
    "encodings/mac_",
    "encodings/koi8",
    "encodings/kz1048",
    "encodings/ptcp154",
    "encodings/tis_620",
    "encodings/hp_roman8",
    "encodings/aliases",
    "html/entities",
    "stringprep",
    "_sysconfigdata",
    "lib2to3/tests/data",
    "test/bad",
)
TEST_FOLDERS: Final = frozenset({"test", "tests", "idle_test"})
VALIDATION_PERCENT: Final = 2
HELDOUT_PERCENT: Final = 4


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its path inside the library (with forward slashes), its text and its side of the split."""

    path: str
    text: str
    split: Split

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to a test suite: test code outweighs the library two to one and is plainer."""
        return not TEST_FOLDERS.isdisjoint(self.path.split("/")[:-1])


def split_of(path: str) -> Split:
    """The side of the split on which a file with this path lies, whatever is in it."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100
    if bucket < HELDOUT_PERCENT:
        return "heldout"
    return "validation" if bucket < HELDOUT_PERCENT + VALIDATION_PERCENT else "train"


def library_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def collect(root: Path | None = None) -> list[Source]:
    """All sources under ``root`` (the running Python's library by default), by path, each text once."""
    root = library_root() if root is None else root
    seen: set[str] = set()
    sources = []
    for relative, path in _candidates(root):
        text = _read(path)
        if text is None or text in seen:
            continue
        seen.add(text)
        sources.append(Source(relative, text, split_of(relative)))
    return sources


def texts(sources: Iterable[Source], split: Split) -> list[str]:
    """The texts on one side of the split, in the order of ``sources``."""
    return [source.text for source in sources if source.split == split]


def _candidates(root: Path) -> Iterator[tuple[str, Path]]:
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for relative in sorted(paths):
        if SKIPPED_FOLDERS.isdisjoint(relative.split("/")) and not relative.startswith(SKIPPED_PREFIXES):
            yield relative, paths[relative]


def _read(path: Path) -> str | None:
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n")
    return text if text.strip() else None
