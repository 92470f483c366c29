"""What one hop costs: from "hidden states leave node A's compute thread" to "they enter node B's compute thread".

Two processes on this machine send a segment of 16 tokens with its hidden states, (16, 4096) in bfloat16 = 128 KB, back
and forth, over the real frames, sockets, event loop and compute thread; half of a round trip is one hop. Between the
round trips, in the same two processes, the same bytes go over plain blocking pyzmq: what the network alone costs here.
A pipe of slow devices rests between two messages, and whoever is woken up takes longer: `--pause` does the same.

    python -m flowspec.bench.hop [repeats] [--pause MILLISECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import zmq

from flowspec.errors import PeerTimeout
from flowspec.program import run_program
from flowspec.runtime.compute import ComputeThread
from flowspec.runtime.loop import run
from flowspec.transport.sockets import SocketOptions, SocketReceiver, SocketSender, SocketSet
from flowspec.wire.frames import decode, encode
from flowspec.wire.messages import DraftTokens, Message, RosterEntry, Segment

if TYPE_CHECKING:
    import torch

TOKENS, WIDTH = 16, 4096
WARM_UP = 20
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class HopResult:
    """Milliseconds, medians and 90th percentiles."""

    repeats: int
    frame_bytes: int
    hop: float
    hop_p90: float
    raw: float
    """The same bytes over blocking pyzmq sockets: no message, no loop, no thread."""
    raw_p90: float
    encode: float
    decode: float
    event_loop: str

    def __str__(self) -> str:
        return "\n".join(
            (
                f"one hop of {self.frame_bytes} bytes, {self.repeats} round trips, {self.event_loop}, milliseconds:",
                f"  compute thread to compute thread   median {self.hop:.3f}   p90 {self.hop_p90:.3f}",
                f"  raw pyzmq, blocking                median {self.raw:.3f}   p90 {self.raw_p90:.3f}",
                f"  encode {self.encode:.3f}, decode {self.decode:.3f}",
            )
        )


def measure_hop(repeats: int = 300, pause: float = 0.0) -> HopResult:
    """Start two processes, measure, and end them; `pause` is how long they rest before each round trip, in seconds.

    Raises `PeerTimeout` when they do not answer in two minutes and what the pauses take.
    """
    context = multiprocessing.get_context("spawn")
    here_a, there_a = context.Pipe()
    here_b, there_b = context.Pipe()
    processes = [
        context.Process(target=_process, args=(there_a, repeats, pause, True), daemon=True),
        context.Process(target=_process, args=(there_b, repeats, pause, False), daemon=True),
    ]
    for process in processes:
        process.start()
    try:
        address_a, address_b = _answer(here_a), _answer(here_b)
        here_a.send(address_b)
        here_b.send(address_a)
        result = _answer(here_a, DEADLINE_SECONDS + 2 * pause * (WARM_UP + repeats))
        assert isinstance(result, HopResult)
        return result
    finally:
        for connection in (here_a, here_b):
            with contextlib.suppress(OSError):
                connection.send("end")
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _answer(connection: Connection, seconds: float = DEADLINE_SECONDS) -> object:
    if not connection.poll(seconds):
        raise PeerTimeout("a measuring process", seconds)
    return connection.recv()


# ---- in the two processes --------------------------------------------------------------------------------------------


def _process(parent: Connection, repeats: int, pause: float, first: bool) -> None:
    import torch

    torch.set_num_threads(1)
    run(_measure(parent, repeats, pause, first))


@dataclass(frozen=True, slots=True)
class _Ends:
    sender: SocketSender
    receiver: SocketReceiver
    raw_out: zmq.Socket[bytes]
    raw_in: zmq.Socket[bytes]


@contextlib.asynccontextmanager
async def _ends(parent: Connection) -> AsyncIterator[_Ends]:
    """Two pairs of sockets to the other process: flowspec's own, and plain ones."""
    options = SocketOptions()
    sockets = SocketSet("hop", options)
    plain = zmq.Context()
    try:
        pull, push = (
            sockets.create(zmq.PULL, "in", options.pipe_depth),
            sockets.create(zmq.PUSH, "out", options.pipe_depth),
        )
        raw_in, raw_out = plain.socket(zmq.PULL), plain.socket(zmq.PUSH)
        raw_in.linger = raw_out.linger = 0
        raw_in.rcvtimeo = raw_out.sndtimeo = round(DEADLINE_SECONDS * 1000)
        pull.plain.bind("tcp://127.0.0.1:*")
        raw_in.bind("tcp://127.0.0.1:*")
        parent.send((_endpoint(pull.plain), _endpoint(raw_in)))
        address, raw_address = parent.recv()
        sockets.connect(push, address)
        raw_out.connect(raw_address)
        yield _Ends(
            SocketSender(push, options.pipe_depth, options.limits),
            SocketReceiver(pull, options.pipe_depth, options.limits),
            raw_out,
            raw_in,
        )
    finally:
        await sockets.close(0)
        plain.destroy(linger=0)


def _endpoint(socket: zmq.Socket[bytes]) -> str:
    name = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(name, bytes)
    return name.rstrip(b"\0").decode()


async def _measure(parent: Connection, repeats: int, pause: float, first: bool) -> None:
    import torch

    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float32).to(torch.bfloat16)
    compute = ComputeThread("compute")
    hops: list[float] = []
    raws: list[float] = []
    try:
        async with _ends(parent) as ends:
            for _ in range(WARM_UP + repeats):
                if first:
                    await _serve(ends, compute, hidden, hops, raws, pause)
                else:
                    await _return_ball(ends, compute)
            if first:
                parent.send(_result(hops[WARM_UP:], raws[WARM_UP:], hidden))
            parent.recv()
    finally:
        await compute.close()


async def _send(ends: _Ends, compute: ComputeThread, message: Message, tensor: Callable[[], torch.Tensor]) -> float:
    """Send as a stage does, which is from its compute thread where there is room; returns when the tensor left."""

    def leave() -> tuple[torch.Tensor, float, int | None]:
        leaving, began = tensor(), time.perf_counter()
        return leaving, began, ends.sender.send_from_thread(message, [leaving])

    leaving, began, sent = await compute.run(leave)
    if sent is None:
        await ends.sender.send(message, [leaving])
    return began


async def _serve(
    ends: _Ends, compute: ComputeThread, hidden: torch.Tensor, hops: list[float], raws: list[float], pause: float
) -> None:
    await asyncio.sleep(pause)
    began = await _send(ends, compute, _segment(), hidden.clone)
    envelope = await ends.receiver.receive()
    ended = await compute.run(time.perf_counter)
    assert envelope.tensors[0].shape == hidden.shape
    hops.append((ended - began) / 2)
    frames = [bytes(frame) for frame in encode(_segment(), [hidden])]
    await asyncio.sleep(pause)
    began = time.perf_counter()
    ends.raw_out.send_multipart(frames)
    ends.raw_in.recv_multipart()
    raws.append((time.perf_counter() - began) / 2)


async def _return_ball(ends: _Ends, compute: ComputeThread) -> None:
    envelope = await ends.receiver.receive()
    await _send(ends, compute, envelope.message, lambda: envelope.tensors[0])
    ends.raw_out.send_multipart(ends.raw_in.recv_multipart())


def _segment() -> Segment:
    """A segment as it is between two stages in mid-generation, with two sessions live."""
    serials = tuple(range(1000, 1000 + TOKENS))
    draft = DraftTokens(serials, tuple(serial - 1 for serial in serials), tuple(range(5000, 5000 + TOKENS)))
    roster = (RosterEntry("session-1", 0, 990, 17), RosterEntry("session-2", 1))
    return Segment("session-1", 0, number=60, ticket=90, decree=400, draft=draft, roster=roster)


def _result(hops: list[float], raws: list[float], hidden: torch.Tensor) -> HopResult:
    frames = encode(_segment(), [hidden])
    arrived = [bytearray(frame) for frame in frames]
    return HopResult(
        repeats=len(hops),
        frame_bytes=sum(memoryview(frame).nbytes for frame in frames),
        hop=1000 * statistics.median(hops),
        hop_p90=1000 * statistics.quantiles(hops, n=10)[-1],
        raw=1000 * statistics.median(raws),
        raw_p90=1000 * statistics.quantiles(raws, n=10)[-1],
        encode=_milliseconds(lambda: encode(_segment(), [hidden])),
        decode=_milliseconds(lambda: decode(arrived)),
        event_loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
    )


def _milliseconds(call: Callable[[], object], times: int = 200) -> float:
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return 1000 * statistics.median(durations)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one hop between two nodes on this machine.")
    parser.add_argument("repeats", nargs="?", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0.0, help="milliseconds of rest before each round trip")
    arguments = parser.parse_args()
    print(measure_hop(max(2, arguments.repeats), max(0.0, arguments.pause) / 1e3))


if __name__ == "__main__":
    run_program(main)
