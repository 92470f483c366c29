"""Disks that take no more, as an unprivileged process can have them on a machine whose disk has room."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: writing fails there, half done, as on a full disk (EFBIG)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
