"""A client's own times of one request, for the figures of one that went on at another coordinator. Reads no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowspec.wire.messages import GenerationStats


@dataclass(slots=True)
class Stopwatch:
    """Times are seconds of one monotonic clock; None for what has not happened."""

    asked: float
    first: float | None = None
    """When the first tokens came."""
    last: float | None = None
    """When the newest ones did."""
    resumed: float | None = None
    """When a coordinator was last asked to go on."""
    resumptions: int = 0

    def tokens_came(self, now: float) -> None:
        self.first = now if self.first is None else self.first
        self.last = now

    def resume(self, now: float) -> None:
        self.resumed = now
        self.resumptions += 1

    def whole(self, stats: GenerationStats) -> GenerationStats:
        """What the last coordinator says, with the times of the whole request, the break included.

        What else the coordinators before it counted is lost with them.
        """
        if self.resumed is None:
            return stats
        ended = self.resumed + stats.time_to_first_token + stats.seconds
        if self.last is not None and self.last <= self.resumed:
            ended = self.last  # only the word that it is over was missing
        first = ended if self.first is None else self.first
        seconds = max(ended - first, 0.0)
        return replace(
            stats,
            seconds=seconds,
            tokens_per_second=(stats.new_tokens - 1) / seconds if seconds > 0 else 0.0,
            time_to_first_token=first - self.asked,
            restarts=stats.restarts + self.resumptions,
        )
