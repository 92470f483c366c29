"""What a coordinator has done since its start, counted: for status and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """All of them only grow."""

    began: float = field(default_factory=time.monotonic)
    tokens: int = 0
    """That clients were told."""
    finished: int = 0
    """Requests that ended well, cancelled ones included."""
    failed: int = 0
    """Requests that were refused, or broke."""
    drafted: int = 0
    accepted: int = 0
    verdicts: int = 0

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began
