"""Key files: only a whole one is read, only its owner's, and nothing that is read keeps anybody waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowspec.errors import SecurityError
from flowspec.transport.keys import KeyFile, KeyPair, read_key_file, write_key_file

TOO_LARGE = "#" * 40
"""Each five of these digits are more than four bytes hold."""


def key_file(path: Path, *lines: str) -> Path:
    path.touch(0o600)
    path.write_text("\n".join(("name x", *lines)) + "\n")
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    key = KeyFile("x", KeyPair.generate(), KeyPair.generate().public)
    write_key_file(tmp_path / "x.secret", key)
    assert read_key_file(tmp_path / "x.secret") == key


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_only_a_regular_file_is_a_key_file(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x.secret"
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(SecurityError, match=f"{path}"):
        read_key_file(path)


@pytest.mark.parametrize("key", [TOO_LARGE, "k" * 39, "k" * 41, "'" * 40])
def test_a_damaged_key_is_told_as_one(tmp_path: Path, key: str) -> None:
    for number, lines in enumerate(
        ([f"secret {key}"], [f"secret {KeyPair.generate().secret.decode()}", f"coordinator {key}"])
    ):
        with pytest.raises(SecurityError, match="is no key file"):
            read_key_file(key_file(tmp_path / f"{number}.secret", *lines))
