"""CURVE key pairs, and the files in which devices keep them: one file per secret key, readable by its owner alone.

A key file holds lines of a word and a value: `name`, `secret`, and for a client `coordinator`, the public key of the
one it talks to. Secret keys appear in no representation and in no error.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from flowspec.errors import SecurityError

KEY_LENGTH = 40
"""Characters of a key in Z85."""

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


def secret_path(directory: str | os.PathLike[str], name: str) -> Path:
    return Path(directory) / f"{name}{SUFFIX}"


def write_key_file(path: Path, key: KeyFile, *, replace: bool = False) -> None:
    """Write `path` (mode 0600), its directory too if there is none (0700). Raises when the file is there already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [
        f"# The secret key of {key.name}. It belongs on that device alone: nobody else needs it.",
        f"name {key.name}",
        f"secret {key.pair.secret.decode()}",
    ]
    if key.coordinator is not None:
        lines.append(f"coordinator {key.coordinator.decode()}")
    target = path.with_name(f".{path.name}.new") if replace else path
    if replace:
        target.unlink(missing_ok=True)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SecurityError(f"{path} is there already", hint="--force replaces it") from None
    with open(handle, "w", encoding="ascii") as stream:
        stream.write("\n".join(lines) + "\n")
    if replace:
        target.replace(path)


def read_key_file(path: str | os.PathLike[str]) -> KeyFile:
    """The key in `path`; raises `SecurityError` when it is missing, damaged, or not the owner's alone."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SecurityError(
            f"the key file {path} cannot be read: {error.strerror}",
            hint="`flowspec keys TOPOLOGY` makes the keys; each device then needs its own file",
        ) from None
    if mode & FOREIGN:
        raise SecurityError(f"the key file {path} is open to others (mode {mode:04o})", hint=f"chmod 600 {path}")
    values = _values(path, data)
    name, secret, coordinator = (values.get(word) for word in ("name", "secret", "coordinator"))
    if not name or secret is None or (coordinator is not None and len(coordinator) != KEY_LENGTH):
        raise _damaged(path)
    pair = KeyPair(public_key(secret, path), secret.encode())
    return KeyFile(name, pair, coordinator.encode() if coordinator else None)


def _values(path: Path, data: bytes) -> dict[str, str]:
    try:
        lines = data.decode("ascii").splitlines() if len(data) <= MAX_BYTES else []
    except UnicodeDecodeError:
        lines = []
    words = [line.split() for line in lines if line.strip() and not line.startswith("# ")]
    if not words or any(len(pair) != 2 for pair in words):
        raise _damaged(path)
    return dict(words)


def public_key(secret: str, path: Path) -> bytes:
    """The public key that belongs to a secret one."""
    try:
        found: bytes = zmq.curve_public(secret.encode())
    except (ValueError, zmq.ZMQError):
        raise _damaged(path) from None
    return found


def _damaged(path: Path) -> SecurityError:
    return SecurityError(
        f"{path} is no key file", hint="it has the lines `name` and `secret`; `flowspec keys` makes such files"
    )
