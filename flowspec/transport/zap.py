"""Answers ZeroMQ's question whether a peer may come in (ZAP, RFC 27): by its CURVE key, door by door.

One handler serves all sockets of a context, on a plain socket in the event loop. It knows keys and names, and nothing
of what is said later; what it refuses is counted, and logged once per address.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import zmq
from zmq.utils import z85

from flowspec.transport.base import MAX_PEERS_COUNTED, ChannelClosed
from flowspec.transport.loop_socket import LoopSocket

logger = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
ACCEPTED, REFUSED = b"200", b"400"
"""A refused peer of ZeroMQ's own kind does not try again."""


class ZapHandler:
    """Who may come in at which domain. Bound before the sockets that it guards; `run` is a task of their owner."""

    def __init__(self, socket: LoopSocket, owner: str) -> None:
        self.admitted = 0
        self.refused = 0
        self._socket = socket
        self._owner = owner
        self._doors: dict[bytes, dict[bytes, str]] = {}
        self._addresses: set[str] = set()
        socket.plain.bind(ENDPOINT)

    def open_door(self, domain: str, keys: Mapping[bytes, str]) -> None:
        """Let the owners of these public keys (Z85, with their names) in at `domain`."""
        self._doors[domain.encode()] = {z85.decode(key): name for key, name in keys.items()}

    def close(self) -> None:
        """Answer nobody any more; `run` returns."""
        self._socket.close(0)

    async def run(self) -> None:
        """Task: answer until the socket is closed."""
        try:
            while True:
                question = [frame.bytes for frame in await self._socket.receive()]
                await self._socket.send(self._answer(question), copy=True)
        except ChannelClosed:
            return

    def _answer(self, question: list[bytes]) -> list[bytes | memoryview]:
        request = question[1] if len(question) > 1 else b""
        name = self._name(question)
        if name is None:
            return [VERSION, request, REFUSED, b"unknown key", b"", b""]
        self.admitted += 1
        return [VERSION, request, ACCEPTED, b"OK", name.encode(), b""]

    def _name(self, question: list[bytes]) -> str | None:
        """Whose key it is, None when nobody's who may come in here; ZeroMQ asks for CURVE peers alone."""
        if len(question) != 7 or question[0] != VERSION or question[5] != b"CURVE":
            self.refused += 1
            return None
        _, _, domain, address, _, _, key = question
        name = self._doors.get(domain, {}).get(key)
        if name is None:
            self._refuse(domain.decode(errors="replace"), address.decode(errors="replace"), key)
        return name

    def _refuse(self, domain: str, address: str, key: bytes) -> None:
        self.refused += 1
        if address in self._addresses or len(self._addresses) >= MAX_PEERS_COUNTED:
            return
        self._addresses.add(address)
        owner = next((name for door in self._doors.values() for each, name in door.items() if each == key), None)
        whose = f"the key of {owner}, which does not open this door" if owner else "an unknown key"
        logger.warning("%s/%s: refused %s with %s (later ones are only counted)", self._owner, domain, address, whose)


def guard(socket: LoopSocket, domain: str) -> None:
    """Make a socket that is about to be bound ask for CURVE, and the handler for everybody who knocks."""
    plain = socket.plain
    plain.curve_server = 1
    plain.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    # Without this, ZeroMQ lets everybody in who finds no handler bound.
    plain.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
