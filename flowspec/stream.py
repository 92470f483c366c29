"""One request of a client: what may be asked, what comes back, and the iteration over it.

Knows no channel; a `Carrier`, the client, carries its messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypedDict

from flowspec.errors import FlowspecError, PipelineError, RequestError
from flowspec.wire.messages import Chunk, Finished, Generate, GenerationStats, Message, Started

Inbox = asyncio.Queue[Message | FlowspecError]
"""What arrived for one request. Needs no bound of its own: the messages of a request end with its last token."""


class Carrier(Protocol):
    """What a stream needs of its client."""

    def enlist(self, request: str) -> Inbox: ...

    def dismiss(self, request: str) -> None: ...

    async def send(self, message: Message) -> None: ...

    async def cancel(self, request: str) -> None: ...


class Options(TypedDict, total=False):
    """What may be said about a request; what is left out is the node's default."""

    prompt_token_ids: tuple[int, ...] | list[int]
    """The prompt as tokens, in place of text."""
    chat: bool
    """Apply the model's chat template to the prompt."""
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: tuple[str, ...] | list[str]
    ignore_eos: bool
    policy: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request gave. `finish_reason` and `stats` are None in the `partial` of an error."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str | None
    seed: int | None
    stats: GenerationStats | None


class Stream:
    """One request: iterate to send it and receive its chunks. Leaving the iteration early cancels the request.

    `started` is known from the first chunk on, `finished` after the last; `generation` is what has come so far.
    A stream may be iterated once.
    """

    def __init__(self, client: Carrier, request: Generate) -> None:
        self._client = client
        self._request = request
        self._iterated = False
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self.started: Started | None = None
        self.finished: Finished | None = None

    @property
    def generation(self) -> Generation:
        return Generation(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self.started.prompt_token_ids if self.started else (),
            finish_reason=self.finished.finish_reason if self.finished else None,
            seed=self.started.sampling.seed if self.started else None,
            stats=self.finished.stats if self.finished else None,
        )

    def __aiter__(self) -> AsyncGenerator[Chunk, None]:
        if self._iterated:
            raise RequestError("a stream can be iterated only once")
        self._iterated = True
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        inbox = self._client.enlist(self._request.request)
        over = False
        try:
            await self._client.send(self._request)
            while True:
                message = await inbox.get()
                if isinstance(message, Chunk):
                    self._check_offset(message)
                    self._text.append(message.text)
                    self._token_ids.extend(message.token_ids)
                    yield message
                elif isinstance(message, Started):
                    self.started = message
                elif isinstance(message, Finished):
                    over = True
                    self.finished = message
                    return
                elif isinstance(message, FlowspecError):
                    over = True
                    message.partial = self.generation
                    raise message
        finally:
            self._client.dismiss(self._request.request)
            if not over:
                await self._client.cancel(self._request.request)

    def _check_offset(self, chunk: Chunk) -> None:
        if chunk.offset != len(self._token_ids):
            error = PipelineError(
                f"a chunk begins at token {chunk.offset}, but {len(self._token_ids)} tokens have come before it"
            )
            error.partial = self.generation
            raise error
