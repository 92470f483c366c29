"""Files that a command writes when it has ended: looked at before it begins, and replaced when they are whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from flowspec.errors import ConfigurationError


class OutputFile:
    """A text file in UTF-8. A device or a pipe is written to as it is, and a link is followed."""

    def __init__(self, path: str | Path, holds: str) -> None:
        self.path: Final = Path(path)
        self._holds: Final = holds
        """What it is to hold, with an article, for messages."""

    def check(self) -> None:
        """Raise `ConfigurationError` when nothing could be written there."""
        with self._told():
            if self.path.is_dir():
                raise IsADirectoryError(21, "it is a directory")
            if self._is_special():
                if not os.access(self.path, os.W_OK):
                    raise PermissionError(13, "permission denied")
                return
            target = self.path.resolve()
            handle, trial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            os.close(handle)
            os.unlink(trial)

    @contextlib.contextmanager
    def replaced(self) -> Iterator[TextIO]:
        """A new content, which takes the place of the old one when the block ends well: nobody reads half of it.

        `ConfigurationError` when it cannot be written; what was there is left then.
        """
        with self._told(), self._open() as file:
            yield file

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"{self._holds} cannot be written to {self.path}: {error.strerror or error}",
                hint="name a file in a directory that exists and may be written to",
            ) from None

    def _is_special(self) -> bool:
        """There is something, and it is no plain file."""
        return self.path.exists() and not self.path.is_file()

    @contextlib.contextmanager
    def _open(self) -> Iterator[TextIO]:
        if self._is_special():
            with self.path.open("w", encoding="utf-8") as file:
                yield file
            return
        path = self.path.resolve()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                yield file
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def unwritable(path: Path, hint: str = "free some space or choose another folder") -> Iterator[None]:
    """Around a block that does nothing but write below `path`: its failures, told as a `ConfigurationError`.

    Of torch a plain RuntimeError counts, whatever it says: on a full disk it names a position in its own archive. Kinds
    of their own, like that of an accelerator without memory, do not.
    """
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and type(error) is not RuntimeError:
            raise
        raise ConfigurationError(f"{path} cannot be written: {_reason(error)}", hint=hint) from error


def _reason(error: BaseException) -> str:
    """In the system's words where there are any, however many errors were raised on top of them."""
    first: BaseException | None = error
    while first is not None:
        if isinstance(first, OSError) and first.strerror:
            return first.strerror
        first = first.__cause__ or first.__context__
    return (str(error) or type(error).__name__).splitlines()[0].rpartition("I/O error: ")[2]
