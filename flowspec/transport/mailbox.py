"""Queues that stand for addresses, and the links on which broadcasts go wrong. The inside of `memory`.

Knows frames only as bytes to be kept or lost, and messages only to ask whether a fault may hit them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowspec.errors import PortInUse
from flowspec.wire.frames import FrameLimits
from flowspec.wire.messages import Cancelled, Message, Verdict

Frames = list[bytearray]


def verdicts_and_cancellations(message: Message) -> bool:
    return isinstance(message, Verdict | Cancelled)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. Probabilities are per broadcast and listener, each on its own.

    A doubled message is two messages, each with its own delay. A delayed one is held until 1 to `longest_delay` later
    ones have passed on the same link, a reordered one until the next has; what nothing follows stays held: it is lost.
    """

    dropped: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    reordered: float = 0.0
    longest_delay: int = 8
    affects: Callable[[Message], bool] = verdicts_and_cancellations
    """Which broadcasts; beacons and probes are spared unless a test wants them hit."""
    drop_forward: Callable[[int, Message], bool] | None = None
    """Called with (index of the receiving stage, message); True loses it in the forward pipe."""
    observe: Callable[[str, str, Message], None] | None = None
    """Called with (channel, sender, message) for everything that is sent, before it can be lost."""


@dataclass(frozen=True, slots=True)
class Depths:
    """Bounds of the queues, in messages."""

    pipe: int = 64
    broadcast: int = 256
    client: int = 1000


@dataclass(slots=True)
class Network:
    """What all ends of one network share. `faults` may be changed while it runs."""

    faults: Faults
    depths: Depths
    limits: FrameLimits
    seed: int

    def observed(self, channel: str, sender: str, message: Message) -> None:
        if self.faults.observe:
            self.faults.observe(channel, sender, message)

    def loses(self, hop: int | None, message: Message) -> bool:
        lose = self.faults.drop_forward
        return hop is not None and lose is not None and lose(hop, message)


class Mailbox:
    """A bounded queue of (sender, frames) with one reader. It outlives its reader, as an address does."""

    def __init__(self, address: str, capacity: int) -> None:
        self.address = address
        self.capacity = capacity
        self.waiting: deque[tuple[bytes, Frames]] = deque()
        self.read = False
        self._watchers: list[asyncio.Future[None]] = []

    def try_put(self, sender: bytes, frames: Frames) -> bool:
        if len(self.waiting) >= self.capacity:
            return False
        self.waiting.append((sender, frames))
        self.notify()
        return True

    def take(self) -> tuple[bytes, Frames] | None:
        if not self.waiting:
            return None
        item = self.waiting.popleft()
        self.notify()
        return item

    async def changed(self) -> None:
        watcher = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        await watcher

    def notify(self) -> None:
        """Wake everybody who waits for a change; they look again."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def attach(self, owner: str) -> None:
        if self.read:
            raise PortInUse(f"{self.address} has a reader already", node=owner, hint="close the other one first")
        self.read = True

    def detach(self) -> None:
        """The reader is gone, and what waited for it is lost with it."""
        self.read = False
        self.waiting.clear()
        self.notify()


class Link:
    """From one publisher's address to one listener, with this link's own luck."""

    def __init__(self, mailbox: Mailbox, network: Network, name: str) -> None:
        self.mailbox = mailbox
        self.dropped = 0
        self._network = network
        self._random = random.Random(f"{network.seed} {name}")
        self._held: list[tuple[int, Frames]] = []

    def deliver(self, message: Message, frames: Frames) -> None:
        """Put on what is due: copies of this message, and those that were held until it came."""
        delays = self._delays(message)
        due = [(0, frames) for delay in delays if not delay]
        due += [(left - 1, held) for left, held in self._held]
        due += [(delay, frames) for delay in delays if delay]
        self._held = [(left, held) for left, held in due if left]
        for left, held in due:
            if not left and not self.mailbox.try_put(b"", copied(held)):
                self.dropped += 1

    def _delays(self, message: Message) -> list[int]:
        """For each copy of the message that is not lost: after how many later ones it arrives.

        The same number of draws for every message, so that its luck does not depend on what the others were.
        """
        faults = self._network.faults
        dropped, doubled, *late = (self._random.random() for _ in range(6))
        longest = [1 + self._random.randrange(max(1, faults.longest_delay)) for _ in range(2)]
        if not faults.affects(message):
            return [0]
        if dropped < faults.dropped:
            self.dropped += 1
            return []
        delays = []
        for copy in range(2 if doubled < faults.doubled else 1):
            reordered = 1 if late[copy] < faults.reordered else 0
            delays.append(longest[copy] if late[2 + copy] < faults.delayed else reordered)
        return delays


def copied(frames: Sequence[bytes | bytearray | memoryview]) -> Frames:
    return [bytearray(frame) for frame in frames]
