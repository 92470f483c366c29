"""Between the scheduler and the drafter: carries `GrowTree` to the drafter's thread, and the answer back as an event.

A drafter that fails costs its guesses, never a request: the scheduler hears an empty answer. One that hangs is given up
after a deadline: the scheduler hears `DrafterLost`, and the session goes on without guesses. A deadline that passes
while the whole process is held up (a device that slept) says nothing about the drafter, which was held up too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from flowspec.drafting.drafter import Children, Drafter, Unwanted
from flowspec.roles.request import Admitted
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.emulation import EmulatedDevice
from flowspec.schedule.events import DrafterLost, Event, FeaturesArrived, GrowTree, TreeGrown
from flowspec.schedule.policies import DRAFTLESS

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

EXCUSED_SECONDS = 0.2
"""A deadline that is noticed so much too late means that this process was held up."""


class StepDeadline:
    """Calls `act` when `seconds` have passed; they begin anew when this process turns out to have been held up."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self._seconds = seconds
        self._act = act
        self._arm()

    def _arm(self) -> None:
        self._due = time.monotonic() + self._seconds
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self.ring)

    def ring(self) -> None:
        """The time is over, or was over long ago."""
        if time.monotonic() - self._due > EXCUSED_SECONDS:
            self._arm()
        else:
            self._act()

    def cancel(self) -> None:
        self._timer.cancel()


class Step:
    """One that the drafter is at, or will be."""

    def __init__(self, command: GrowTree) -> None:
        self.command = command
        self.is_wanted = True

    def wanted(self) -> bool:
        """Safe from any thread."""
        return self.is_wanted


class DraftDesk:
    """`apply(event)` is the scheduler's ear; `deadline` in seconds is for one step, a long prompt included.

    `abandon(session)` is told when the drafter takes no more features of a session, `abandon(None)`: of any.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        compute: ComputeThread,
        *,
        vocab_size: int,
        deadline: float,
        apply: Callable[[Event], None],
        device: EmulatedDevice | None = None,
    ) -> None:
        """`device` is what the drafter is to be as slow as."""
        self.drafter = drafter
        self._device = device or EmulatedDevice()
        self._compute = compute
        self._vocab_size = vocab_size
        self._deadline = deadline
        self._apply = apply
        self._hung = False
        self._steps: dict[str, Step] = {}
        """The newest of each session that is not answered yet."""
        self._deaf: set[str] = set()
        """Sessions whose features the drafter failed to take."""
        self.abandon: Callable[[str | None], None] = lambda _: None

    @property
    def name(self) -> str:
        return self.drafter.name if self.drafter is not None else "none"

    def open(self, admitted: Admitted, session: str) -> tuple[int, ...] | None:
        """Prepare for a session; returns the taps that the drafter reads, None when it has to do without guesses.

        Does not wait for the drafter, which may be busy, or hang: its thread works in order.
        """
        if self.drafter is None or self._hung or admitted.policy in DRAFTLESS:
            return None
        opened = self._compute.run(self.drafter.open, session, admitted.sampling, admitted.row_limit)
        opened.add_done_callback(_tell_failure)
        return self.drafter.taps

    def close(self, session: str) -> None:
        if self.drafter is not None and not self._hung:
            self._compute.run(self._forget, session).add_done_callback(_tell_failure)

    def _forget(self, session: str) -> None:
        """On the drafter's thread."""
        self._deaf.discard(session)
        if self.drafter is not None:
            self.drafter.close(session)

    def ask(self, command: GrowTree) -> None:
        """One step; its answer comes as `TreeGrown`, or as `DrafterLost`."""
        assert self.drafter is not None
        asked = time.perf_counter()
        step = self._steps[command.session] = Step(command)
        if self._device.emulates:
            growing = self._compute.run(self._grow_slowly, command, asked)
        else:
            growing = self._compute.run(self.drafter.grow, command, command.width, step.wanted)
        deadline = StepDeadline(self._deadline, lambda: self._give_up(command, growing))

        def answered(future: asyncio.Future[Children]) -> None:
            deadline.cancel()
            if self._steps.get(command.session) is step:
                del self._steps[command.session]
            if future.cancelled():
                return
            error = future.exception()
            stopped = isinstance(error, Unwanted)
            if error is not None and not stopped:
                logger.error("the drafter failed, going on without its guesses: %s", error)
            children = () if error is not None else self._known(future.result())
            self._apply(TreeGrown(command.session, command.epoch, children, time.perf_counter() - asked, stopped))

        growing.add_done_callback(answered)

    def stop(self, session: str, epoch: int) -> None:
        """The session's step may be broken off. An emulated one takes its time all the same."""
        step = self._steps.get(session)
        if step is not None and step.command.epoch == epoch:
            step.is_wanted = False

    def _grow_slowly(self, command: GrowTree, asked: float) -> Children:
        """On the drafter's thread: a step, and the rest of its emulated time."""
        assert self.drafter is not None
        began = self._device.begin_at(asked)
        children = self.drafter.grow(command, command.width)
        self._device.hold(began, len(command.expand))
        return children

    def _known(self, children: Children) -> Children:
        """Without guesses that are none: tokens that the model does not have, which stage 1 could not look up, and
        scores that are no numbers. An answer of another shape is none at all."""
        size = self._vocab_size
        try:
            if all(0 <= token < size and score < inf for _, guesses in children for token, score in guesses):
                return children
            return tuple(
                (serial, tuple((token, score) for token, score in guesses if 0 <= token < size and score < inf))
                for serial, guesses in children
            )
        except (TypeError, ValueError) as error:
            logger.error("the drafter answered with something else than guesses, going on without them: %s", error)
            return ()

    def take_features(self, session: str, epoch: int, first: int, features: Tensor) -> None:
        """Give features to the drafter, in order with its steps; the scheduler hears `FeaturesArrived`."""
        if self.drafter is None or self._hung:
            return
        count = first + len(features)
        taken = self._compute.run(self._take, session, epoch, first, features)

        def answered(future: asyncio.Future[bool]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                logger.error("the drafter failed to take features, going on without them: %s", error)
                self.abandon(session)
            elif future.result():
                self._apply(FeaturesArrived(session, epoch, count))

        taken.add_done_callback(answered)

    def _take(self, session: str, epoch: int, first: int, features: Tensor) -> bool:
        """On the drafter's thread. After a failure the session's features would have a gap: it gets no more of them."""
        if self.drafter is None or session in self._deaf:
            return False
        try:
            self.drafter.take_features(session, epoch, first, features)
        except BaseException:
            self._deaf.add(session)
            raise
        return True

    def _give_up(self, command: GrowTree, step: asyncio.Future[Children]) -> None:
        logger.error("the drafter %s gave no answer within %g s, going on without it", self.name, self._deadline)
        self._hung = True
        step.cancel()
        self.abandon(None)
        self._apply(DrafterLost(command.session))


def _tell_failure(called: asyncio.Future[None]) -> None:
    """A drafter that could not open a session answers its steps with nothing, or with an error; both are heard."""
    error = None if called.cancelled() else called.exception()
    if error is not None:
        logger.error("the drafter failed to open or close a session: %s", error)
