"""Between the scheduler and the drafter: carries `GrowTree` to the drafter's thread, and the answer back as an event.

A drafter that fails costs its guesses, never a request: the scheduler hears an empty answer. One that hangs is given up
after a deadline: the scheduler hears `DrafterLost`, and the session goes on without guesses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from flowspec.drafting.drafter import Children, Drafter
from flowspec.roles.request import Admitted
from flowspec.runtime.compute import ComputeThread
from flowspec.schedule.events import DrafterLost, Event, GrowTree, TreeGrown

logger = logging.getLogger(__name__)


class DraftDesk:
    """`apply(event)` is the scheduler's ear; `deadline` in seconds is for one step, a long prompt included."""

    def __init__(
        self,
        drafter: Drafter | None,
        compute: ComputeThread,
        *,
        width: int,
        deadline: float,
        apply: Callable[[Event], None],
    ) -> None:
        self.drafter = drafter
        self._compute = compute
        self._width = width
        self._deadline = deadline
        self._apply = apply
        self._hung = False

    @property
    def name(self) -> str:
        return self.drafter.name if self.drafter is not None else "none"

    async def open(self, admitted: Admitted, session: str) -> bool:
        """Prepare for a session; False when it has to do without guesses."""
        if self.drafter is None or self._hung:
            return False
        await self._compute.run(self.drafter.open, session, admitted.sampling, admitted.row_limit)
        return True

    def close(self, session: str) -> None:
        if self.drafter is not None:
            self._compute.run(self.drafter.close, session)

    def ask(self, command: GrowTree) -> None:
        """One step; its answer comes as `TreeGrown`, or as `DrafterLost`."""
        assert self.drafter is not None
        asked = time.perf_counter()
        step = self._compute.run(self.drafter.grow, command, self._width)
        alarm = asyncio.get_running_loop().call_later(self._deadline, self._give_up, command, step)

        def answered(future: asyncio.Future[Children]) -> None:
            alarm.cancel()
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                logger.error("the drafter failed, going on without its guesses: %s", error)
            children = () if error is not None else future.result()
            self._apply(TreeGrown(command.session, command.epoch, children, time.perf_counter() - asked))

        step.add_done_callback(answered)

    def _give_up(self, command: GrowTree, step: asyncio.Future[Children]) -> None:
        logger.error("the drafter %s gave no answer within %g s, going on without it", self.name, self._deadline)
        self._hung = True
        step.cancel()
        self._apply(DrafterLost(command.session))
