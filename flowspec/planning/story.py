"""What a simulated model writes in one session, and what that makes of the tokens that were sent: accepted, or dead.

Verdicts are numbered. Whether a token is alive at a stage follows from the newest verdict that the stage has heard and
from ancestry alone, so one book for the whole pipe holds, per token, the verdict that kills it; stages only remember a
number. Knows no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from flowspec.wire.messages import DraftTokens

NEVER: Final = 1 << 60
"""The verdict that kills a token that lives; a stage that has heard it (the session's end) has nothing alive."""


class Story:
    """`target(position)` is the token that the model writes there; the first token of the prompt is at 0.

    `prunes`: stages drop what a verdict contradicts; else they compute it to the end of the pipe.
    """

    def __init__(self, decree: int, target: Callable[[int], int], *, prunes: bool = True) -> None:
        self.decree = decree
        self.prunes = prunes
        self.verdict = 0
        """Verdicts so far."""
        self.frontier: int | None = None
        self.token: int | None = None
        """The model's token after the frontier."""
        self._target = target
        self._position = decree
        self._deaths: dict[int, int] = {}
        self._accepted: dict[int, tuple[int, int]] = {}
        """Per accepted token the token after it, and the verdict that told."""
        self._live: dict[int, tuple[int, int]] = {}
        """Parent and token of what was sent and is neither accepted nor dead, parents first."""
        self._computed: dict[tuple[int, int], int] = {}
        """Serials of what the tail has computed, by parent and token."""

    @property
    def known(self) -> int:
        """Positions up to the frontier: how many there are hidden states of for a drafter that reads them."""
        return self._position + 1

    def send(self, draft: DraftTokens) -> None:
        """The coordinator has sent `draft`; some of it may be dead already."""
        for serial, parent, token in zip(draft.serials, draft.parents, draft.tokens, strict=True):
            if serial <= self.decree:
                continue
            after = self._accepted.get(parent)
            if parent in self._deaths:
                self._deaths[serial] = self._deaths[parent]
            elif after is not None and after[0] != token:
                self._deaths[serial] = after[1]
            else:
                self._live[serial] = (parent, token)

    def alive(self, serials: Sequence[int], verdict: int) -> Sequence[int]:
        """Those of `serials` that are alive for whoever has heard `verdict`."""
        if verdict >= NEVER:
            return ()
        if not self.prunes:
            return serials
        deaths = self._deaths
        return [serial for serial in serials if deaths.get(serial, NEVER) > verdict]

    def accepted(self, serial: int) -> bool:
        """The target has accepted this draft token."""
        return serial in self._accepted

    def compute(self, serials: Sequence[int]) -> bool:
        """The tail has computed these tokens; True when that moves the verdict."""
        for serial in serials:
            found = self._live.get(serial)
            if found is not None:
                self._computed[found] = serial
        if self.frontier is None:
            if not serials or serials[-1] < self.decree:
                return False
            at, token = self.decree, self._target(self.decree + 1)
        else:
            assert self.token is not None
            following = self._computed.get((self.frontier, self.token))
            if following is None:
                return False
            at, token = self._pass(following)
        self.verdict += 1
        self._accepted[at] = (token, self.verdict)
        while (following := self._computed.get((at, token))) is not None:
            at, token = self._pass(following)
            self._accepted[at] = (token, self.verdict)
        self.frontier, self.token = at, token
        self._bury()
        return True

    def _pass(self, serial: int) -> tuple[int, int]:
        """Accept the computed token; it, and what the model writes after it."""
        del self._computed[self._live.pop(serial)]
        self._position += 1
        return serial, self._target(self._position + 1)

    def _bury(self) -> None:
        """Find what the newest verdict contradicts."""
        dead = []
        for serial, (parent, token) in self._live.items():
            after = self._accepted.get(parent)
            if parent in self._deaths or (after is not None and after[0] != token):
                self._deaths[serial] = self.verdict
                dead.append(serial)
        for serial in dead:
            self._computed.pop(self._live.pop(serial), None)
