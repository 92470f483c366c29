"""A plain ZeroMQ socket in an event loop: messages in and out without a task, a timer or a future that is not needed.

ZeroMQ tells through a file descriptor that *something* happened to a socket, not what, and only once: whatever reads
`EVENTS`, sends or receives may take that notice away. So two rules hold here:

    - a receiver waits only after `EVENTS` or a refusal has said that nothing is there, a sender only after a refusal;
    - whatever touches the socket while somebody waits asks `EVENTS` for him afterwards.

A message leaves the socket in the step of the task that asked for it, so a receive that is cancelled loses none. Knows
no message, no limit and no counter. Needs a loop with `add_reader`.

ZeroMQ lets any thread use a socket as long as no two do at once. So a lock is held whenever the socket is touched, and
another thread may send as long as nobody in the loop waits for room: then there is no notice that it could take away.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from flowspec.transport.base import ChannelClosed

# Plain integers: as an enumeration's members they would cost more to combine than a small message to send.
EVENTS, READABLE, WRITABLE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
AT_ONCE = int(zmq.NOBLOCK)
MORE_AT_ONCE = int(zmq.NOBLOCK | zmq.SNDMORE)

Frame = bytes | memoryview


@dataclass(frozen=True, slots=True, eq=False)
class _Unsent:
    frames: Sequence[Frame]
    copy: bool
    sent: asyncio.Future[bool]
    """False: the socket was closed before there was room."""


class LoopSocket:
    """One socket, used from the loop that runs when it is made. Options are set on `plain`, before bind and connect.

    Any number of tasks may send; their messages leave in the order of the calls. Any number may receive.
    """

    def __init__(self, plain: zmq.Socket[bytes], channel: str) -> None:
        self.plain = plain
        self.channel = channel
        self.lock = threading.Lock()
        """Held by whoever touches `plain` once there are messages."""
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        """Watched from the first wait on."""
        self._receivers: list[asyncio.Future[None]] = []
        self._unsent: deque[_Unsent] = deque()

    @property
    def closed(self) -> bool:
        return self.plain.closed

    @property
    def unsent(self) -> int:
        """Messages that wait for room."""
        return len(self._unsent)

    async def receive(self) -> list[zmq.Frame]:
        """The frames of the next message. Raises `ChannelClosed`."""
        self._check_open()
        if not self._events() & READABLE:
            await self._readable()
        while True:
            self._check_open()
            try:
                return self._take()
            except zmq.Again:  # another receiver was faster
                await self._readable()

    async def send(self, frames: Sequence[Frame], *, copy: bool) -> None:
        """Wait until the message has room. Raises `ChannelClosed`; cancelled while it waits, the message is not sent.

        Without `copy` the frames belong to ZeroMQ from then on.
        """
        if not self.try_send(frames, copy=copy):
            self._watch()
            unsent = _Unsent(frames, copy, self._loop.create_future())
            self._unsent.append(unsent)
            self._look()
            if not await unsent.sent:
                raise self._closed_error()

    def try_send(self, frames: Sequence[Frame], *, copy: bool) -> bool:
        """Send at once; False: there is no room, or others wait for it. Raises `ChannelClosed`.

        From a ROUTER also `zmq.ZMQError` when the peer is unknown.
        """
        self._check_open()
        if self._unsent:
            return False
        try:
            self._put(frames, copy)
        except zmq.Again:
            return False
        finally:
            if self._receivers:
                self._look()
        return True

    def send_from_thread(self, frames: Sequence[Frame], *, copy: bool) -> bool:
        """As `try_send`, from another thread than the loop's, of a socket from which nobody receives.

        False, too, where the socket was closed or failed: whoever sends from the loop then hears of it.
        """
        with self.lock:
            if self._unsent or self.plain.closed:
                return False
            try:
                self._put_alone(frames, copy)
            except zmq.ZMQError:
                return False
        return True

    def close(self, linger: int) -> None:
        """Let what was sent leave for at most `linger` milliseconds; whoever waits gets `ChannelClosed`."""
        if self.plain.closed:
            return
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
        with self.lock:
            self.plain.close(linger=linger)
        self._wake_receivers()
        while self._unsent:
            unsent = self._unsent.popleft()
            if not unsent.sent.done():
                unsent.sent.set_result(False)

    # ---- the socket itself -------------------------------------------------------------------------------------------

    def _put(self, frames: Sequence[Frame], copy: bool) -> None:
        """Send all frames or, with `zmq.Again`, none: ZeroMQ takes back what it has of a message that it refuses."""
        with self.lock:
            self._put_alone(frames, copy)

    def _put_alone(self, frames: Sequence[Frame], copy: bool) -> None:
        send = self.plain.send
        last = len(frames) - 1
        for frame in frames[:last]:
            send(frame, MORE_AT_ONCE, copy)
        send(frames[last], AT_ONCE, copy)

    def _take(self) -> list[zmq.Frame]:
        receive = self.plain.recv
        with self.lock:
            frames = [receive(AT_ONCE, False)]
            while frames[-1].more:
                frames.append(receive(AT_ONCE, False))
        if self._unsent or self._receivers:
            self._loop.call_soon(self._look)
        return frames

    def _events(self) -> int:
        """What the socket is ready for; to ask is also what makes its descriptor quiet again."""
        with self.lock:
            return int(self.plain.getsockopt(EVENTS))

    # ---- waiting -----------------------------------------------------------------------------------------------------

    async def _readable(self) -> None:
        self._watch()
        future: asyncio.Future[None] = self._loop.create_future()
        self._receivers.append(future)
        await future

    def _watch(self) -> None:
        if self._fd < 0:
            self._fd = int(self.plain.getsockopt(zmq.FD))
            self._loop.add_reader(self._fd, self._look)

    def _look(self) -> None:
        """Something happened to the socket: wake receivers if a message is there, send what waits if there is room."""
        while not self.plain.closed:
            events = self._events()
            if events & READABLE:
                self._wake_receivers()
            if not (events & WRITABLE and self._send_unsent()):
                return

    def _wake_receivers(self) -> None:
        """All of them: one that is cancelled now would keep the news to itself."""
        for future in self._receivers:
            if not future.done():
                future.set_result(None)
        self._receivers.clear()

    def _send_unsent(self) -> bool:
        """Send what waits as far as there is room; was anything sent?"""
        before = len(self._unsent)
        while self._unsent:
            unsent = self._unsent[0]
            if not unsent.sent.done():
                try:
                    self._put(unsent.frames, unsent.copy)
                except zmq.Again:
                    break
                except zmq.ZMQError as error:
                    unsent.sent.set_exception(error)
                else:
                    unsent.sent.set_result(True)
            self._unsent.popleft()
        return len(self._unsent) < before

    def _check_open(self) -> None:
        if self.plain.closed:
            raise self._closed_error()

    def _closed_error(self) -> ChannelClosed:
        return ChannelClosed(f"the channel {self.channel} was closed")
