"""Requests leave a pipeline as they found it: in one process, what `flowspec.bench.steadiness` measures on several."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from tests.checkpoints import write_checkpoint
from tests.pipeline.running import Running, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
REQUESTS = 20
CANCEL_EVERY = 5
DEADLINE = 30.0
LOOKS, MOST_LOOKS = 3, 30


async def serve(running: Running) -> None:
    """Both policies, greedy and sampled, some broken off; returns when nothing of them lives anywhere."""
    for number in range(REQUESTS):
        stream = running.client.stream(
            prompt_token_ids=PROMPT,
            policy=("autoregressive", "flowspec")[number % 2],
            temperature=0.8 if number // 2 % 2 else 0.0,
            repetition_penalty=1.1,
            seed=number,
            max_new_tokens=12,
            ignore_eos=True,
        )
        async with aclosing(aiter(stream)) as chunks:
            async for _ in chunks:
                if number % CANCEL_EVERY == 0:
                    break
    async with asyncio.timeout(DEADLINE):
        while not running.coordinator.scheduler.idle or any(stage.sessions for stage in running.stages):
            await running.client.status()


def objects() -> Counter[str]:
    """Instances of flowspec's and torch's classes that live now, by class; asyncio keeps old timers as it likes.

    Messages count as one class, because whoever reads a channel holds on to the last one, of whichever kind it is.
    """
    gc.collect()
    names = (f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    return Counter(
        "message" if name.startswith("flowspec.wire.messages.") else name
        for name in names
        if name.startswith(("flowspec.", "torch."))
    )


def entries(thing: object, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """How much every container holds that is reached from `thing` through objects of flowspec."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, asyncio.Queue):
        yield path, thing.qsize()
    elif isinstance(thing, dict | list | set | deque):
        yield path, len(thing)
        for name, part in thing.items() if isinstance(thing, dict) else enumerate(thing):
            yield from entries(part, f"{path}[{name}]", seen)
    elif type(thing).__module__.startswith("flowspec."):
        names = {*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())}
        for name in sorted(names):
            yield from entries(getattr(thing, name, None), f"{path}.{name}", seen)


def held(running: Running) -> Counter[str]:
    seen: set[int] = set()
    nodes = [running.coordinator, *running.stages, running.client]
    found = Counter({"tasks": len(asyncio.all_tasks()), "threads": threading.active_count()})
    for number, node in enumerate(nodes):
        found.update(dict(entries(node, f"{type(node).__name__} {number}", seen)))
    return found


Look = tuple[Counter[str], Counter[str]]


async def look(running: Running) -> Look:
    """Objects, and what containers hold, when every thread has done what it was asked for and a message came back."""
    for node in (running.coordinator, *running.stages):
        assert node._compute is not None
        await node._compute.run(int)
    await running.client.status()
    return objects(), held(running)


def lowest(looks: Sequence[Look]) -> Look:
    """What is there at every look: a heartbeat or a probe may be on its way at any of them."""
    first, *others = looks
    for other in others:
        first = (first[0] & other[0], first[1] & other[1])
    return first


def grown(before: Look, after: Look) -> dict[str, int]:
    """What there is more of, of objects at least one for every request that was broken off."""
    kept = {name: count for name, count in (after[0] - before[0]).items() if count >= REQUESTS // CANCEL_EVERY}
    return {**kept, **(after[1] - before[1])}


async def test_requests_leave_tasks_threads_sessions_and_objects_where_they_were(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", layers=3)
    async with pipeline(model, 3, drafter={"kind": "causal-lm", "model": str(model)}) as running:
        await serve(running)
        before = lowest([await look(running) for _ in range(LOOKS)])
        await serve(running)
        looks = [await look(running)]
        while grown(before, lowest(looks)) and len(looks) < MOST_LOOKS:
            looks.append(await look(running))
        assert grown(before, lowest(looks)) == {}, "something is kept of each request, or of each that was broken off"
