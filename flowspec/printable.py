"""Text that others wrote, made fit for a terminal: a model or a peer may have put escape sequences into it."""

from __future__ import annotations

import re
from typing import Final

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""The text with every control character but tab and newline in writing: an escape becomes `\x1b`."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
