"""Streams that run without a break while faults befall their pipeline, each compared with what it was undisturbed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowspec.client import Client, Generation
from flowspec.errors import FlowspecError

STREAMS = 3
TOKENS = 64
NEARLY_OVER = 8
"""Tokens before the end from which on a stream does not count as being in the middle."""

HANGING_SECONDS = 60.0
"""Without a token for so long, a stream hangs."""

REFUSED_SECONDS = 0.5
"""Before whoever met an error asks again."""

PROMPTS = ((5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9), tuple(range(20, 90)), (7,))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1, "seed": 5},
)

Case = tuple[tuple[int, ...], Mapping[str, Any]]
CASES: tuple[Case, ...] = tuple((prompt, sampling) for prompt in PROMPTS for sampling in SAMPLINGS)


def asked(case: Case) -> dict[str, Any]:
    prompt, sampling = case
    return {"prompt_token_ids": prompt, "max_new_tokens": TOKENS, "ignore_eos": True, **sampling}


@dataclass(slots=True)
class Tally:
    """How the streams ended."""

    streams: int = 0
    exact: int = 0
    documented_errors: int = 0
    """Ended with an error of `flowspec.errors`, and what had come was the beginning of the right text."""
    wrong: int = 0
    hung: int = 0
    errors: list[str] = field(default_factory=list)


class FaultStreams:
    """`STREAMS` at a time over clients that `connect` makes; `truth` holds what each of `CASES` gives undisturbed."""

    def __init__(self, connect: Callable[[], Client], truth: Sequence[Generation], dice: random.Random) -> None:
        self.tally = Tally()
        self._connect = connect
        self._truth = truth
        self._dice = dice
        self._came: list[int] = [0] * STREAMS
        """Per stream, tokens that have come in all of its requests."""
        self._left: list[int] = [0] * STREAMS
        """Per stream, tokens that the running request still lacks; 0 before its first and after its last."""
        self._ended = 0
        """Requests that have ended."""
        self._moved = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Task: until `stop`, and then until the last requests have ended."""
        async with asyncio.TaskGroup() as group:
            for index in range(STREAMS):
                group.create_task(self._keep_streaming(index), name=f"stream {index}")

    def stop(self) -> None:
        self._stopping = True

    async def in_the_middle(self) -> None:
        """Return in the moment in which a stream has received a token and lacks many."""
        while True:
            before = list(self._came)
            await self._next_move()
            if any(
                now > then and left > NEARLY_OVER
                for now, then, left in zip(self._came, before, self._left, strict=True)
            ):
                return

    async def all_moved(self) -> None:
        """Return when every stream has received something, or has ended with an error, or hangs."""
        before = list(self._came)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANGING_SECONDS):
                while any(now == then for now, then in zip(self._came, before, strict=True)):
                    await self._next_move()

    async def one_ended(self) -> None:
        """Return when some request has ended, or nothing moves any more."""
        before = self._ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANGING_SECONDS):
                while self._ended == before:
                    await self._next_move()

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _keep_streaming(self, index: int) -> None:
        while not self._stopping:
            with contextlib.suppress(FlowspecError):
                async with self._connect() as client:
                    while not self._stopping and await self._stream(client, index):
                        pass
            if not self._stopping:
                await asyncio.sleep(REFUSED_SECONDS)

    async def _stream(self, client: Client, index: int) -> bool:
        """One request; False when its client may be of no use any more."""
        number = self._dice.randrange(len(CASES))
        stream = client.stream(**asked(CASES[number]))
        truth, tally = self._truth[number], self.tally
        tally.streams += 1
        error: Exception | None = None
        try:
            chunks = aiter(stream)
            while True:
                async with asyncio.timeout(HANGING_SECONDS):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                self._note(index, len(chunk.token_ids), TOKENS - len(stream.generation.token_ids))
        except (FlowspecError, TimeoutError) as caught:
            error = caught
        finally:
            self._ended += 1
            self._note(index, 1, 0)
        came = stream.generation
        if came.token_ids != truth.token_ids[: len(came.token_ids)] or (
            error is None and (came.token_ids, came.text) != (truth.token_ids, truth.text)
        ):
            tally.wrong += 1
        elif isinstance(error, TimeoutError):
            tally.hung += 1
        elif error is not None:
            tally.documented_errors += 1
            tally.errors.append(str(error).splitlines()[0])
        else:
            tally.exact += 1
        return error is None

    def _note(self, index: int, came: int, left: int) -> None:
        self._came[index] += came
        self._left[index] = left
        self._moved.set()
