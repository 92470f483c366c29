"""Slow devices on a fast machine: what is emulated is the time of computing, never its content.

An emulated device keeps a calendar of its own. It begins with a piece of work when that has arrived and the device is
free, and is busy for the emulated time; a result is held back until then. What this process does besides, reading the
next message while the device is busy, say, goes on at the same time, as it does on a real device.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from flowspec.runtime.lateness import Lateness
from flowspec.topology.sections import Emulation, StepEmulation

NEVER_HEARD: Final = threading.Event()


class EmulatedDevice:
    """`base + per_token * tokens` seconds for each piece of work, one after the other; zero means no emulation.

    `arrived` may be called from any thread, the rest from the one that computes. Times are `time.perf_counter` seconds.
    """

    def __init__(self, base: float = 0.0, per_token: float = 0.0) -> None:
        self.base = base
        self.per_token = per_token
        self.emulates = base > 0 or per_token > 0
        self._free_at = 0.0
        self._lateness = Lateness()
        self._arrivals: deque[tuple[int, float]] = deque()

    @classmethod
    def like(cls, emulation: StepEmulation | None) -> EmulatedDevice:
        """What a topology says of a stage."""
        return cls(emulation.base_ms / 1e3, emulation.per_token_ms / 1e3) if emulation else cls()

    @classmethod
    def of_drafter(cls, emulation: Emulation | None, layers: int) -> EmulatedDevice:
        """What a topology says of a draft node whose drafter has that many layers."""
        step = emulation.draft if emulation is not None else None
        return cls.like(step.of_layers(layers) if step is not None else None)

    def of(self, tokens: int) -> float:
        """Seconds for that many tokens."""
        return self.base + self.per_token * tokens

    def arrived(self, ticket: int) -> None:
        """The work with this number is here; numbers increase."""
        self._arrivals.append((ticket, time.perf_counter()))

    def begin(self, ticket: int) -> float:
        """When the device began with this work, which is now being computed: not before it arrived, nor while busy."""
        began = now = time.perf_counter()
        if not self.emulates:
            return now
        while self._arrivals and self._arrivals[0][0] <= ticket:
            number, arrival = self._arrivals.popleft()
            began = arrival if number == ticket else now
        return self.begin_at(began)

    def begin_at(self, arrived: float) -> float:
        """When the device began with work that arrived then."""
        return max(arrived, self._free_at)

    def hold(
        self,
        began: float,
        tokens: int,
        steps: int = 1,
        alive: Callable[[], bool] = lambda: True,
        heard: threading.Event = NEVER_HEARD,
    ) -> bool:
        """Wait until work of that many tokens, begun then, is done; False when it died meanwhile (see `hold`)."""
        duration = self.of(tokens)
        # No device is emulated that is faster than this one.
        end = max(began + duration, time.perf_counter())
        done = hold(began, duration, steps, alive, heard, self._lateness)
        self._free_at = end if done else time.perf_counter()
        return done


def hold(
    began: float,
    duration: float,
    steps: int,
    alive: Callable[[], bool],
    heard: threading.Event,
    lateness: Lateness,
) -> bool:
    """Wait until `began + duration` (`time.perf_counter` seconds); False when the work died meanwhile.

    A real device notices between two layers that its work is dead, so the wait ends at the next of `steps` equal parts.
    `heard` is set by whoever brings news that may change `alive`.
    """
    end = began + duration - lateness.lead
    while (left := end - time.perf_counter()) > 0:
        if heard is not NEVER_HEARD:
            heard.clear()
        if not alive():
            step = duration / max(steps, 1)
            done = time.perf_counter() - began
            time.sleep(max(0.0, min(left, step - done % step)))
            return False
        if not heard.wait(left):
            lateness.woke(time.perf_counter() - end)
    return alive()
