"""What coverage-guided fuzzing feeds to each target: how bytes become inputs, with which it begins, how they change.

Knows no fuzzer: a target takes bytes and counts what becomes of them.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from flowspec.bench.fuzz import CLIENT_LIMITS, MINIMAL, TOPOLOGIES, Campaign, load
from flowspec.bench.fuzzed_desk import FuzzedDesk
from flowspec.bench.mutations import Mutator
from flowspec.errors import FlowspecError, TopologyError, WireError
from flowspec.wire.frames import FrameLimits, decode, encode, message_types

SIZE_BYTES = 2
"""Before each frame of an input: its length."""

MOST_STEPS = 40
"""What clients and the pipe say in one input."""


class Target(ABC):
    """What inputs are fed to, one after the other; each leaves it as it was."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    """Their branches guide the fuzzer: everything below these names."""
    most_bytes: ClassVar[int] = 4096

    def __init__(self, campaign: Campaign, seed: int) -> None:
        self.campaign = campaign
        self.mutator = Mutator(seed)

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""

    @abstractmethod
    def vary(self, data: bytes) -> bytes:
        """One close to `data`, made with knowledge of its form."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Try this input. Whatever the code under test raises is counted, not raised."""


def joined(frames: Sequence[bytes], *, of_client: bool) -> bytes:
    """Frames, and whose limits hold for them, as one input. Frames are cut at 64 KB."""
    parts = (frame[: 2 ** (8 * SIZE_BYTES) - 1] for frame in frames)
    return bytes([of_client]) + b"".join(len(part).to_bytes(SIZE_BYTES, "little") + part for part in parts)


def parted(data: bytes) -> tuple[list[bytes], bool]:
    """What `joined` has joined; every input is something."""
    frames, place = [], 1
    while place < len(data):
        size = int.from_bytes(data[place : place + SIZE_BYTES], "little")
        frames.append(data[place + SIZE_BYTES : place + SIZE_BYTES + size])
        place += SIZE_BYTES + size
    return frames, bool(data[:1] > b"\0")


class Frames(Target):
    """The frames of one message, as a pipe decodes them or as the coordinator does what comes from clients."""

    name = "frames"
    modules = ("flowspec.wire",)

    def seeds(self) -> list[bytes]:
        kinds = sorted(message_types().values(), key=lambda kind: kind.kind)
        valid = [[bytes(frame) for frame in encode(self.mutator.message([kind]))] for kind in kinds for _ in range(3)]
        sound = [self.mutator.sound() for _ in range(30)]
        odd = [self.mutator.frames() for _ in range(100)]
        return [joined(frames, of_client=number % 4 == 0) for number, frames in enumerate([*valid, *sound, *odd])]

    def vary(self, data: bytes) -> bytes:
        frames, of_client = parted(data)
        if self.mutator.random.random() < 0.25:
            return joined(self.mutator.sound(), of_client=of_client)
        return joined(self.mutator.like(frames[0] if frames else b""), of_client=of_client)

    def feed(self, data: bytes) -> None:
        frames, of_client = parted(data)
        limits = CLIENT_LIMITS if of_client else FrameLimits()
        self.campaign.try_one(self.name, WireError, lambda: decode(frames, limits), data)


class Topologies(Target):
    """A topology file."""

    name = "topologies"
    modules = ("flowspec.topology", "yaml")

    def seeds(self) -> list[bytes]:
        files = [MINIMAL, *(path.read_text() for path in sorted(TOPOLOGIES.glob("*.yaml")))]
        return [text.encode() for text in (*files, *(self.mutator.topology(files) for _ in range(40)))]

    def vary(self, data: bytes) -> bytes:
        return self.mutator.topology([data.decode(errors="replace")]).encode(errors="replace")

    def feed(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        self.campaign.try_one(self.name, TopologyError, lambda: load(text), text)


class Decisions(random.Random):
    """Draws from given bytes instead of chance: the first choice, and zero, when they are used up."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(0)
        self.begin(data)

    def begin(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def used_up(self) -> bool:
        return self._place >= len(self._data)

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(8) / 256


class Clients(Target):
    """A conversation: what clients ask of the coordinator and what the pipe answers, each decision a byte."""

    name = "clients"
    modules = (
        *("flowspec.roles.front_desk", "flowspec.roles.admission", "flowspec.roles.request"),
        *("flowspec.roles.waiting_room", "flowspec.schedule", "flowspec.model.text", "flowspec.wire"),
    )
    most_bytes = 2048

    def __init__(self, campaign: Campaign, seed: int) -> None:
        super().__init__(campaign, seed)
        self._decisions = Decisions()
        self._desk: FuzzedDesk | None = None
        self._loop = asyncio.new_event_loop()

    def seeds(self) -> list[bytes]:
        draw = self.mutator.random
        return [draw.randbytes(draw.choice((30, 100, 400, 1500))) for _ in range(60)]

    def vary(self, data: bytes) -> bytes:
        """The conversation broken off somewhere, and gone on with by chance."""
        draw = self.mutator.random
        return data[: draw.randrange(len(data) + 1)] + draw.randbytes(draw.randrange(200))

    def feed(self, data: bytes) -> None:
        self._loop.run_until_complete(self._converse(data))

    async def _converse(self, data: bytes) -> None:
        desk = self._desk = self._desk or FuzzedDesk(Mutator(self._decisions))
        self._decisions.begin(data)
        desk.renew()
        for _ in range(MOST_STEPS):
            if self._decisions.used_up:
                break
            desk.step(self.campaign.try_one, pipe=self._decisions.random() < 0.5)
            # What the desk has put off is done now.
            await asyncio.sleep(0)
            desk.settle()
        self.campaign.try_one("ends", FlowspecError, desk.end, data)
        await asyncio.sleep(0)

    def close(self) -> None:
        self._loop.close()


TARGETS: dict[str, type[Target]] = {each.name: each for each in (Frames, Topologies, Clients)}
