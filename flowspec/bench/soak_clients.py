"""Clients of a soak: they read, cancel, vanish, read slowly and ask for too much, without a break.

Every stream is compared with what its request gave when nothing else ran.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from flowspec.bench.awake_clock import AwakeClock
from flowspec.bench.soak_requests import POLICIES, SoakRequest
from flowspec.client import Client, Generation
from flowspec.errors import FlowspecError, LimitExceeded, Overloaded
from flowspec.stream import Stream
from flowspec.transport.base import CLOSE_SECONDS, ClientChannel
from flowspec.transport.zeromq import ZeroMQTransport
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import Cancel, Message

HANGING_SECONDS: Final = 120.0
"""Without any message for so long, a stream hangs."""

PAUSE_SECONDS: Final = 0.03
"""Of a slow reader, before each message."""

WIDTHS: Final = (1, 1, 1, 4)
"""Streams over one connection, in turns."""

MANNERS: Final = {"plain": 12, "slow": 2, "vanishing": 8}
"""What the next connection is like, with its weight."""

MOST_REQUESTS: Final = 4
"""Of one stream over one connection."""

CANCELLED_SHARE: Final = 0.2
IMPATIENT_SHARE: Final = 0.25
"""Of those who do not read to the end: who gives up before anything has come, perhaps while still in line."""

IMPATIENT_SECONDS: Final = 0.3
TRACED_SHARE: Final = 0.02
TOO_MUCH_SHARE: Final = 0.02

MOST_ERRORS: Final = 50
"""That are kept in words."""


@dataclass(slots=True)
class Tally:
    """How the requests ended."""

    exact: int = 0
    cancelled: int = 0
    disconnected: int = 0
    refused: int = 0
    """By a limit: the line was full (asked again after `retry_after`), or more was asked than is allowed."""
    wrong: int = 0
    errors: int = 0
    hung: int = 0
    tokens: int = 0
    by_policy: Counter[str] = field(default_factory=Counter)
    by_end: Counter[str] = field(default_factory=Counter)
    """Those that were exact, by the reason for which they ended."""
    words: list[str] = field(default_factory=list)
    """What went wrong, the first of it."""

    @property
    def requests(self) -> int:
        """All that were not refused."""
        return self.exact + self.cancelled + self.disconnected + self.wrong + self.errors + self.hung

    def as_values(self) -> dict[str, int]:
        names = ("requests", "exact", "cancelled", "disconnected", "refused", "wrong", "errors", "hung", "tokens")
        return {name: getattr(self, name) for name in names}

    def note(self, words: str) -> None:
        if len(self.words) < MOST_ERRORS:
            self.words.append(words)


class ManneredChannel:
    """A client's channel that waits before it hears each message, or that never says that a request is cancelled."""

    def __init__(self, channel: ClientChannel, manner: str) -> None:
        self._channel = channel
        self._manner = manner

    async def send(self, message: Message) -> int:
        if self._manner == "vanishing" and isinstance(message, Cancel):
            return 0
        return await self._channel.send(message)

    async def receive(self) -> Envelope:
        if self._manner == "slow":
            await asyncio.sleep(PAUSE_SECONDS)
        return await self._channel.receive()

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        await self._channel.close(0.0 if self._manner == "vanishing" else seconds)


class Manners:
    """Connects clients of one manner: "plain", "slow" or "vanishing"."""

    def __init__(self, manner: str) -> None:
        self._manner = manner

    async def connect_client(self, address: str) -> ClientChannel:
        return ManneredChannel(await ZeroMQTransport().connect_client(address), self._manner)


class SoakClients:
    """`streams` at a time at `address`; `truth` holds what each of `requests` gave alone.

    `most_tokens` is what a request may ask for at most.
    """

    def __init__(
        self,
        address: str,
        requests: Sequence[SoakRequest],
        truth: Sequence[Generation],
        dice: random.Random,
        *,
        streams: int,
        most_tokens: int,
        clock: AwakeClock,
    ) -> None:
        self.tally = Tally()
        self._address = address
        self._requests = requests
        self._truth = truth
        self._dice = dice
        self._streams = streams
        self._most_tokens = most_tokens
        self._clock = clock
        self._stopping = False

    def stop(self) -> None:
        """Begin nothing new; what runs ends by itself."""
        self._stopping = True

    async def run(self) -> None:
        """Task: until `stop`, and then until the last requests have ended."""
        left, number = self._streams, 0
        async with asyncio.TaskGroup() as group:
            while left:
                width = min(left, WIDTHS[number % len(WIDTHS)])
                group.create_task(self._connect_again_and_again(width), name=f"connections {number}")
                left, number = left - width, number + 1

    async def _connect_again_and_again(self, width: int) -> None:
        while not self._stopping:
            manner = self._draw(MANNERS) if width == 1 else "plain"
            held_up = self._clock.held_up
            try:
                async with (
                    Client(self._address, transport=Manners(manner)) as client,
                    asyncio.TaskGroup() as group,
                ):
                    for _ in range(width):
                        group.create_task(self._ask_again_and_again(client, manner), name=f"{manner} stream")
            except* FlowspecError as errors:
                # An answer for which nobody was awake is none that did not come.
                if not await self._clock.was_held_up(held_up):
                    self.tally.errors += 1
                    self.tally.note(f"{manner} connection: {errors.exceptions[0]!r}")

    async def _ask_again_and_again(self, client: Client, manner: str) -> None:
        """Over one connection; one that is to vanish does so in the midst of its last request."""
        for left in reversed(range(self._dice.randint(1, MOST_REQUESTS))):
            if self._stopping:
                return
            if self._dice.random() < TOO_MUCH_SHARE:
                await self._ask_too_much(client)
            if not await self._ask(client, vanishes=manner == "vanishing" and left == 0):
                return

    async def _ask_too_much(self, client: Client) -> None:
        try:
            async with self._clock.patience(HANGING_SECONDS):
                await client.generate(prompt_token_ids=(5,), max_new_tokens=self._most_tokens + 1)
        except LimitExceeded:
            self.tally.refused += 1
        except TimeoutError:
            self.tally.hung += 1
            self.tally.note(f"a request over a limit was not answered within {HANGING_SECONDS:g} s")
        else:
            self.tally.wrong += 1
            self.tally.note("a request over a limit was served")

    async def _ask(self, client: Client, *, vanishes: bool) -> bool:
        """One request, as often as the line is full; False when its client may be of no use any more."""
        number = self._dice.randrange(len(self._requests))
        request, truth = self._requests[number], self._truth[number]
        most = None
        if vanishes or self._dice.random() < CANCELLED_SHARE:
            impatient = self._dice.random() < IMPATIENT_SHARE
            most = 0 if impatient else self._dice.randint(1, len(truth.token_ids))
        policy = self._draw(POLICIES)
        traced = self._dice.random() < TRACED_SHARE
        while not self._stopping:
            stream = client.stream(**request.asked(), policy=policy, trace=traced)
            problem = ""
            try:
                await self._read(stream, most)
            except Overloaded as refusal:
                if refusal.retry_after:
                    self.tally.refused += 1
                    await asyncio.sleep(refusal.retry_after * self._dice.uniform(1.0, 1.5))
                    continue
                self.tally.errors += 1
                problem = "refused without a word about when to ask again"
            except FlowspecError as error:
                self.tally.errors += 1
                problem = repr(error)
            except TimeoutError:
                self.tally.hung += 1
                problem = f"no message for {HANGING_SECONDS:g} s"
            else:
                self._judge(stream, truth, policy, vanishes)
            if problem:
                self.tally.note(f"{policy}, {request}: {problem}")
            self.tally.by_policy[policy] += 1
            return not problem
        return False

    async def _read(self, stream: Stream, most: int | None) -> None:
        """All of it, or until at least `most` tokens have come; 0: ask, and give up soon."""
        came = 0
        async with aclosing(aiter(stream)) as chunks:
            if most == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._dice.uniform(0.0, IMPATIENT_SECONDS)):
                        await anext(chunks, None)
                return
            while most is None or came < most:
                async with self._clock.patience(HANGING_SECONDS):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                came += len(chunk.token_ids)
                self.tally.tokens += len(chunk.token_ids)

    def _judge(self, stream: Stream, truth: Generation, policy: str, vanishes: bool) -> None:
        came, tally = stream.generation, self.tally
        if not agrees(came, truth):
            tally.wrong += 1
            tally.note(f"{policy}: {came}, not {truth}")
        elif came.finish_reason is not None:
            tally.exact += 1
            tally.by_end[came.finish_reason] += 1
        elif vanishes:
            tally.disconnected += 1
        else:
            tally.cancelled += 1

    def _draw(self, weights: dict[str, int]) -> str:
        return self._dice.choices(list(weights), list(weights.values()))[0]


def agrees(came: Generation, truth: Generation) -> bool:
    """Whether `came` is `truth`, or, where it was broken off, its beginning."""
    if came.finish_reason is None:
        return truth.token_ids[: len(came.token_ids)] == came.token_ids and truth.text.startswith(came.text)
    return (came.token_ids, came.text, came.finish_reason) == (truth.token_ids, truth.text, truth.finish_reason)
