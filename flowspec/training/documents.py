"""The user's text: which files there are, what of them is text, and which side of the split it lies on.

Files are taken as they are named, folders by suffix. A `.jsonl` file holds a document per line: an object with `text`,
or with `messages` or `conversations`, to which the model's chat template is applied. The split is a fixed hash: of a
file's path inside the folder that was named (so it never changes sides, whatever else is there), of a line's content
for `.jsonl`. Second copies of a text are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flowspec.errors import ConfigurationError

SUFFIXES: Final = (
    *(".txt", ".md", ".rst", ".tex", ".html", ".jsonl"),
    *(".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".kt", ".go", ".rs"),
    *(".rb", ".php", ".cs", ".swift", ".scala", ".lua", ".sh", ".sql", ".css", ".yaml", ".yml", ".toml"),
)
"""What counts as text in a folder."""

HELDOUT_PERCENT: Final = 6
ROLES: Final = {"human": "user", "gpt": "assistant"}
"""Names of roles in the `from` of conversations, as chat templates know them."""
HIDDEN: Final = "."


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation as (role, content) turns, and its side of the split."""

    name: str
    text: str
    turns: tuple[tuple[str, str], ...]
    heldout: bool


def is_heldout(name: str) -> bool:
    """Whether what has this name is kept from training, whatever is in it: so are 6 of 100."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100 < HELDOUT_PERCENT


def read_documents(paths: Sequence[Path], suffixes: Sequence[str] = SUFFIXES) -> Iterator[Document]:
    """All documents below `paths`, each text once, in the order of their names.

    ConfigurationError for a path that is not there or not text, a folder without text, a line that is no document.
    """
    seen: set[bytes] = set()
    for path in paths:
        files = list(_files(path, suffixes))
        if not files:
            raise ConfigurationError(
                f"{path} holds no text: no file ends in {', '.join(suffixes[:8])}{' ...' * (len(suffixes) > 8)}",
                hint="name the files themselves, or other endings with --suffix",
            )
        for name, file in files:
            for document in _documents(name, file, named=file == path):
                digest = hashlib.sha256(repr((document.text, document.turns)).encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield document


def _files(path: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name for the split, file)."""
    if path.is_file():
        yield path.name, path
    elif path.is_dir():
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.suffix in suffixes}
        for name in sorted(found):
            hidden = any(part.startswith(HIDDEN) for part in Path(name).parts)
            if not hidden and found[name].is_file():
                yield name, found[name]
    else:
        raise ConfigurationError(
            f"there is no file or folder {path}", hint="--data names text files, .jsonl or folders"
        )


def _documents(name: str, file: Path, named: bool) -> Iterator[Document]:
    try:
        content = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        if named:
            raise ConfigurationError(f"{file} is no text in UTF-8", hint="convert it first") from None
        return
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix == ".jsonl":
        # Not `splitlines`: JSON leaves other ends of lines, like U+2028, as they are inside a text.
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield _line(f"{file}:{number}", line.removesuffix("\r"))
    elif content.strip():
        yield Document(name, content.replace("\r\n", "\n"), (), is_heldout(name))


def _line(where: str, line: str) -> Document:
    hint = 'a line is a JSON object with "text", "messages" or "conversations"'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not JSON: {error}", hint=hint) from error
    heldout = is_heldout(line)
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return Document(where, record["text"], (), heldout)
    turns = (record.get("messages") or record.get("conversations")) if isinstance(record, dict) else None
    if not isinstance(turns, list):
        raise ConfigurationError(f"{where} is no document", hint=hint)
    return Document(where, "", tuple(_turn(where, turn) for turn in turns), heldout)


def _turn(where: str, turn: Any) -> tuple[str, str]:
    if isinstance(turn, dict):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return ROLES.get(role, role), content
    raise ConfigurationError(
        f"{where}: a turn of the conversation has no role or no content",
        hint='a turn is {"role": ..., "content": ...}, or {"from": ..., "value": ...}',
    )
