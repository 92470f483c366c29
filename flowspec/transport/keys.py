"""CURVE key pairs, and the files in which devices keep them: one file per secret key, readable by its owner alone.

A key file holds lines of a word and a value: `name`, `secret`, and for a client `coordinator`, the public key of the
one it talks to. Secret keys appear in no representation and in no error.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from flowspec.errors import SecurityError
from flowspec.topology.keys import key_bytes

SUFFIX = ".secret"
MAX_BYTES = 4096
FOREIGN = stat.S_IRWXG | stat.S_IRWXO
"""What group and others may do to a key file or its directory: nothing."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys in Z85."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(*zmq.curve_keypair())


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file holds."""

    name: str
    pair: KeyPair
    coordinator: bytes | None = None
    """Public key of the coordinator; for clients."""

    def text(self) -> str:
        lines = [
            f"# The secret key of {self.name}. It belongs on that device alone: nobody else needs it.",
            f"name {self.name}",
            f"secret {self.pair.secret.decode()}",
        ]
        if self.coordinator is not None:
            lines.append(f"coordinator {self.coordinator.decode()}")
        return "\n".join(lines) + "\n"


def secret_path(directory: str | os.PathLike[str], name: str) -> Path:
    return Path(directory) / f"{name}{SUFFIX}"


def write_key_file(path: Path, key: KeyFile, *, replace: bool = False) -> None:
    """Write `path` (mode 0600), its directory too if there is none (0700). Raises when the file is there already."""
    if not replace and os.path.lexists(path):
        raise SecurityError(f"{path} is there already", hint="--force replaces it")
    with placed({path: key}):
        pass


@contextlib.contextmanager
def placed(keys: Mapping[Path, KeyFile]) -> Iterator[None]:
    """All of `keys` in their files; when the block fails, what was there before is there again.

    Files have the mode 0600 before anything is in them, and their directory has 0700 if it is made. Raises
    `SecurityError` when they cannot be written.
    """
    old: list[Path] = []
    with contextlib.ExitStack() as undo:
        try:
            parts = {path: _written_beside(path, key, undo) for path, key in keys.items()}
            for path, part in parts.items():
                if os.path.lexists(path):
                    old.append(_put_aside(path, undo))
                part.replace(path)
                undo.callback(path.unlink)
        except OSError as error:
            raise SecurityError(
                f"secret keys cannot be written to {next(iter(keys)).parent}: {error.strerror or error}",
                hint="those that were there are as they were",
            ) from None
        yield
        undo.pop_all()
    for path in old:
        path.unlink()


def _written_beside(path: Path, key: KeyFile, undo: contextlib.ExitStack) -> Path:
    """A file beside `path` that only has to take its place."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise SecurityError(
            f"everybody may exchange files in {path.parent} (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 700 {path.parent}, or name another directory for secret keys",
        )
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    undo.callback(Path(name).unlink, missing_ok=True)
    with open(handle, "w", encoding="ascii") as stream:
        stream.write(key.text())
        stream.flush()
        # A name in the directory must not outlive what is in the file when the power goes.
        os.fsync(handle)
    return Path(name)


def _put_aside(path: Path, undo: contextlib.ExitStack) -> Path:
    """The file at `path` under another name, until it is known that nobody needs it."""
    aside = path.with_name(f".{path.name}.old")
    path.replace(aside)
    undo.callback(_put_back, aside, path)
    return aside


def _put_back(aside: Path, path: Path) -> None:
    try:
        aside.replace(path)
    except OSError as error:
        raise SecurityError(
            f"{path} could not be put back as it was: {error.strerror}", hint=f"the old key is in {aside}"
        ) from None


def read_key_file(path: str | os.PathLike[str]) -> KeyFile:
    """The key in `path`; raises `SecurityError` when it is missing, damaged, or not the owner's alone."""
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            regular = stat.S_ISREG(mode)
            data = stream.read(MAX_BYTES + 1) if regular else b""
    except OSError as error:
        raise SecurityError(
            f"the key file {path} cannot be read: {error.strerror}",
            hint="`flowspec keys TOPOLOGY` makes the keys; each device then needs its own file",
        ) from None
    if not regular:
        raise SecurityError(f"{path} is no key file: only a regular file is one, no directory, pipe or device")
    if mode & FOREIGN:
        raise SecurityError(
            f"the key file {path} is open to others (mode {stat.S_IMODE(mode):04o})", hint=f"chmod 600 {path}"
        )
    values = _values(path, data)
    name, secret, coordinator = (values.get(word) for word in ("name", "secret", "coordinator"))
    if not name or secret is None:
        raise _damaged(path)
    try:
        for key in (secret, coordinator or secret):
            key_bytes(key)
    except ValueError:
        raise _damaged(path) from None
    pair = KeyPair(zmq.curve_public(secret.encode()), secret.encode())
    return KeyFile(name, pair, coordinator.encode() if coordinator else None)


def _open_at_once(path: str, flags: int) -> int:
    """A pipe would be waited for before it can be seen that it is one."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _values(path: Path, data: bytes) -> dict[str, str]:
    try:
        lines = data.decode("ascii").splitlines() if len(data) <= MAX_BYTES else []
    except UnicodeDecodeError:
        lines = []
    words = [line.split() for line in lines if line.strip() and not line.startswith("# ")]
    if not words or any(len(pair) != 2 for pair in words):
        raise _damaged(path)
    return dict(words)


def _damaged(path: Path) -> SecurityError:
    return SecurityError(
        f"{path} is no key file",
        hint="it has the lines `name` and `secret`, and keys of 40 characters; `flowspec keys` makes such files",
    )
