"""The process of `flowspec.bench.intruders` that knocks at the ports of a pipeline, in every way but the right one.

It also does the opposite: take as much time of a core as that takes, and knock at no port.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from multiprocessing.connection import Connection

import zmq

from flowspec.runtime.limits import allow_many_connections
from flowspec.transport.keys import KeyPair, read_key_file
from flowspec.wire.frames import encode
from flowspec.wire.messages import Close, Generate, StatusQuery

HOST = "127.0.0.1"
PAUSE_SECONDS = 0.05
"""Between two knocks of one kind at one port."""

ZMTP_NULL = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
"""The greeting of a ZeroMQ peer without security."""

GARBAGE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    ZMTP_NULL,
    ZMTP_NULL + b"\x04\xff\xff\xff\xff\xff\xff\xff\xff",
    ZMTP_NULL.replace(b"NULL" + bytes(16), b"CURVE" + bytes(15)) + b"\x04\xc8\x05HELLO" + bytes(194),
)


KINDS = ("silent", "garbage", "keyless", "wrong keys")
"""Of strangers, as they may be told to knock."""

BURN_SECONDS = 0.005
"""Between two moments at which a process that knocks nowhere looks whether it has computed enough."""

MOST_BURNT = 0.9
"""Most of a core that it computes."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Knock; answered when all silent connections are open."""

    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True, slots=True)
class Burn:
    """Take this share of a core, and knock nowhere."""

    cores: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop, close everything; answered with `Knocks`."""


@dataclass(frozen=True, slots=True)
class Knocks:
    """What one process did between two words."""

    by_kind: dict[str, int]
    """Connections; those of wrong keys by key."""
    half_open: int
    """Most silent connections that were open at once."""
    cores: float
    """Of this process meanwhile; to open silent connections at the beginning counts as neither."""


def knock(line: Connection, doors: dict[int, str], client_key: str, client_port: int, half_open: int) -> None:
    """Main function of the process: `doors` has the public key of the node behind each port.

    Each word is answered, `Pause` with `Knocks` and the others with True; it ends when the line does.
    """
    allow_many_connections()
    asyncio.run(_Strangers(line, doors, client_key, client_port, half_open).run())


class _Strangers:
    def __init__(
        self, line: Connection, doors: dict[int, str], client_key: str, client_port: int, half_open: int
    ) -> None:
        self._line = line
        self._doors = doors
        self._ports = list(doors)
        self._client_key = client_key
        self._client_port = client_port
        self._half_open = half_open
        self._most = 0
        self._counts: Counter[str] = Counter()
        self._silent: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._random = random.Random(0)
        self._began = (0.0, 0.0)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                word = await loop.run_in_executor(None, self._line.recv)
            except EOFError:
                self._context.destroy(linger=0)
                return
            match word:
                case Begin(kinds):
                    await self._begin(kinds)
                    self._line.send(True)
                case Burn(cores):
                    self._note_beginning()
                    self._tasks.append(loop.create_task(self._burn(cores)))
                    self._line.send(True)
                case _:
                    self._line.send(await self._pause())

    async def _begin(self, kinds: tuple[str, ...]) -> None:
        if "silent" in kinds:
            await self._open_silent()
        self._note_beginning()
        loop = asyncio.get_running_loop()
        ways: list[Coroutine[None, None, None]] = []
        if "silent" in kinds:
            ways += [self._keep_silent(port) for port in self._ports]
        if "garbage" in kinds:
            ways += [self._babble(port) for port in self._ports]
        if "keyless" in kinds:
            ways.append(self._keyless())
        if "wrong keys" in kinds:
            ways.append(self._wrong_keys())
        self._tasks += [loop.create_task(way) for way in ways]

    def _note_beginning(self) -> None:
        self._began = (time.process_time(), time.perf_counter())

    async def _pause(self) -> Knocks:
        seconds = time.perf_counter() - self._began[1]
        cores = (time.process_time() - self._began[0]) / seconds
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        for writer in self._silent:
            writer.transport.abort()
        self._silent.clear()
        knocks = Knocks(dict(self._counts), self._most, cores)
        self._counts.clear()
        self._most = 0
        return knocks

    async def _burn(self, cores: float) -> None:
        began = self._began
        # One thread cannot burn a whole core and hear who is to stop it, too.
        cores = min(cores, MOST_BURNT)
        while True:
            while time.process_time() - began[0] < cores * (time.perf_counter() - began[1]):
                pass
            await asyncio.sleep(BURN_SECONDS)

    async def _open_silent(self) -> None:
        """Connections that say nothing, spread over all ports."""
        for number in range(self._half_open):
            await self._one_silent(self._ports[number % len(self._ports)])
        self._most = max(self._most, len(self._silent))

    async def _one_silent(self, port: int) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            self._silent.append(writer)
            self._counts["silent"] += 1

    async def _keep_silent(self, port: int) -> None:
        """Open new ones for those that the nodes have closed."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            self._silent = [writer for writer in self._silent if not writer.transport.is_closing()]
            if len(self._silent) < self._half_open:
                await self._one_silent(port)

    async def _babble(self, port: int) -> None:
        """Plain TCP: HTTP, TLS, greetings that go wrong, random bytes."""
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection(HOST, port)
                pick = self._random.randrange(len(GARBAGE) + 1)
                writer.write(GARBAGE[pick] if pick < len(GARBAGE) else self._random.randbytes(4096))
                self._counts["garbage"] += 1
                try:
                    async with asyncio.timeout(PAUSE_SECONDS):
                        await reader.read(1000)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _keyless(self) -> None:
        """ZeroMQ peers without security, which send well-formed messages."""
        while True:
            for port in self._ports:
                kind = zmq.DEALER if port == self._client_port else zmq.PUSH
                await self._say("keyless", kind, port, None, None)

    async def _wrong_keys(self) -> None:
        """Unknown keys at every door, and a client's key at the doors of nodes, each with the right server's key."""
        client = read_key_file(self._client_key).pair
        while True:
            for port in self._ports:
                kind = zmq.DEALER if port == self._client_port else zmq.PUSH
                await self._say("unknown key", kind, port, KeyPair.generate(), self._doors[port])
                if port != self._client_port:
                    await self._say("client's key", zmq.PUSH, port, client, self._doors[port])

    async def _say(self, what: str, kind: int, port: int, pair: KeyPair | None, server: str | None) -> None:
        socket = self._context.socket(kind)
        try:
            if pair is not None and server is not None:
                socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret
                socket.curve_serverkey = server.encode()
            socket.linger = 0
            socket.connect(f"tcp://{HOST}:{port}")
            for message in (StatusQuery("stranger"), Close("stranger", 0), _generate()):
                with contextlib.suppress(zmq.Again):
                    socket.send_multipart(encode(message), zmq.NOBLOCK)
            self._counts[what] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            socket.close()


def _generate() -> Generate:
    return Generate(
        request="stranger",
        prompt="let me in",
        prompt_token_ids=None,
        chat=False,
        max_new_tokens=4,
        temperature=None,
        top_k=None,
        top_p=None,
        min_p=None,
        repetition_penalty=None,
        seed=None,
        stop=(),
        ignore_eos=True,
        policy=None,
    )
