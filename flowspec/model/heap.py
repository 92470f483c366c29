"""What the C library keeps of memory that was freed, and how it gives it back."""

from __future__ import annotations

import contextlib
import ctypes


def trim() -> None:
    """Give back to the system what was freed; nothing where the C library has no such call (it is glibc's).

    Weights that were read, converted and let go leave holes between those that stay, which glibc would keep for later.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
