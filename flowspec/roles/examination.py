"""Facts and links for `flowspec doctor`: what a stage answers, and how the coordinator asks and reckons.

The rate of a link is what a large message takes longer than an empty one: both times are differences between two
clocks, and what the clocks are apart cancels.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from flowspec.errors import FlowspecError, LimitExceeded, Overloaded
from flowspec.runtime.reach import memory, round_trips, versions
from flowspec.topology import Topology
from flowspec.transport.base import Sender
from flowspec.wire.frames import Envelope
from flowspec.wire.messages import (
    Diagnose,
    Diagnosis,
    Examine,
    Examined,
    Failed,
    LinkFacts,
    Message,
    NodeFacts,
    SpareExamined,
    SpareFacts,
)

ROUNDS = 3
"""Empty and large messages each; the fastest counts."""

DEADLINE = 10.0
"""Seconds that the coordinator waits for an answer; from a slow link it may come later, and is then missing."""

SPARE_SECONDS = 2.0
"""After so long a spare that has not answered is asked again: broadcasts may be lost."""

MAX_PAYLOAD = 16 * 2**20


def facts_of(topology: Topology, name: str, fingerprint: str, tokenizer: str) -> NodeFacts:
    """What this process says of itself, as node `name`."""
    total, free = memory()
    return NodeFacts(
        node=name,
        **versions(),
        fingerprint=fingerprint,
        tokenizer=tokenizer,
        dtype=topology.dtype if topology.spare(name) is not None else topology.node(name).dtype,
        memory_total=total,
        memory_free=free,
        encrypted=topology.keys is not None,
        clock=time.time(),
    )


async def answer_examination(
    envelope: Envelope, arrived: int, facts: NodeFacts, returns: Sender, following: tuple[str, int], *, tail: bool
) -> None:
    """A stage's answer; `following`: host and port of the node behind the next link. Takes as long as that link asks.

    Facts and round trips are told with empty messages alone.
    """
    examine = envelope.message
    assert isinstance(examine, Examine)
    empty = not envelope.tensors
    trips = await round_trips(*following) if empty else ()
    answered = time.perf_counter_ns()
    message = Examined(
        facts.node,
        examine.nonce,
        examine.left,
        arrived,
        answered,
        trips,
        replace(facts, clock=time.time()) if empty else None,
    )
    await returns.send(message, envelope.tensors if tail else ())


@dataclass(slots=True)
class _Round:
    """One message down the pipe, and what came of it."""

    payload: int
    left: int
    wall: float
    answers: dict[str, tuple[Examined, int, float]] = field(default_factory=dict)
    """By stage, each with the coordinator's two clocks at its arrival."""


class Examination:
    """The coordinator's side; one diagnosis at a time, asked for with `begin` and told to the client that asked."""

    def __init__(
        self,
        topology: Topology,
        pipe: Sender,
        hints: Sender,
        *,
        facts: Callable[[], NodeFacts],
        waits_for: Callable[[], str],
        spares: Callable[[], tuple[str, ...]],
        tell: Callable[[bytes, Message], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._topology = topology
        self._pipe = pipe
        self._facts = facts
        self._hints = hints
        self._waits_for = waits_for
        self._living_spares = spares
        self._spares: dict[str, SpareFacts] = {}
        self._spare_heard = asyncio.Event()
        self._tell = tell
        self._spawn = spawn
        self._rounds: dict[int, _Round] = {}
        self._nonce = 0
        self._complete = asyncio.Event()
        self._busy = False

    def begin(self, peer: bytes, message: Diagnose) -> None:
        """Ask everybody, as far as the pipe is whole, and tell the client what came of it."""
        most = min(MAX_PAYLOAD, self._topology.limits.message)
        refusal: FlowspecError | None = None
        if not 0 < message.payload <= most:
            refusal = LimitExceeded("the payload of a diagnosis", message.payload, most)
        elif self._busy:
            refusal = Overloaded("another diagnosis is running", retry_after=DEADLINE)
        if refusal is not None:
            failed = Failed(message.request, type(refusal).__name__, str(refusal), refusal.retry_after)
            self._tell(peer, failed)
            return
        self._busy = True
        self._spawn(self._run(peer, message), "diagnosis")

    def hear(self, message: Examined) -> None:
        """A stage answered."""
        found = self._rounds.get(message.nonce)
        if found is not None and message.node not in found.answers:
            found.answers[message.node] = (message, time.perf_counter_ns(), time.time())
            if len(found.answers) == len(self._topology.stages):
                self._complete.set()

    def hear_spare(self, message: SpareExamined) -> None:
        """A spare answered."""
        if message.nonce == self._nonce and self._busy:
            facts = message.spare.facts
            # What it did before it answered took long; the way back did not.
            self._spares[message.node] = replace(message.spare, facts=replace(facts, clock=facts.clock - time.time()))
            self._spare_heard.set()

    async def _run(self, peer: bytes, message: Diagnose) -> None:
        try:
            waits_for, mine = self._waits_for(), replace(self._facts(), clock=0.0)
            rounds: list[_Round] = []
            for number in range(0 if waits_for else 2 * ROUNDS):
                rounds.append(await self._ask(message.payload if number % 2 else 0))
                if len(rounds[-1].answers) < len(self._topology.stages):
                    break
            first = self._topology.stages[0]
            links = self._links(rounds, await round_trips(first.host, first.port))
            spares = await self._ask_spares()
            self._tell(peer, Diagnosis(message.request, (mine, *self._stages(rounds)), links, waits_for, spares))
        finally:
            self._busy = False
            self._rounds.clear()
            self._spares.clear()

    async def _ask(self, payload: int) -> _Round:
        self._nonce += 1
        self._complete.clear()
        tensors = [torch.zeros(payload, dtype=torch.uint8)] if payload else []
        found = self._rounds[self._nonce] = _Round(payload, time.perf_counter_ns(), time.time())
        try:
            async with asyncio.timeout(DEADLINE):
                await self._pipe.send(Examine(self._nonce, self._topology.draft_node.name, found.left), tensors)
                await self._complete.wait()
        except (TimeoutError, FlowspecError):
            pass
        return found

    async def _ask_spares(self) -> tuple[SpareFacts, ...]:
        """What the spares that live say of themselves, as far as they do in time."""
        self._nonce += 1
        living = self._living_spares()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                while any(name not in self._spares for name in living):
                    self._spare_heard.clear()
                    await self._hints.send(Examine(self._nonce, self._topology.draft_node.name, time.perf_counter_ns()))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SPARE_SECONDS):
                            await self._spare_heard.wait()
        return tuple(self._spares[name] for name in living if name in self._spares)

    def _stages(self, rounds: list[_Round]) -> list[NodeFacts]:
        """What each stage said of itself, its clock against ours: half-way between question and answer."""
        told: list[NodeFacts] = []
        for stage in self._topology.stages:
            heard = [(each, each.answers[stage.name]) for each in rounds if stage.name in each.answers]
            offsets = [
                ((wall - found.wall), answer.facts.clock - (found.wall + wall) / 2, answer.facts)
                for found, (answer, _, wall) in heard
                if answer.facts is not None
            ]
            if offsets:
                _, offset, facts = min(offsets, key=lambda each: each[0])
                told.append(replace(facts, clock=offset))
        return told

    def _links(self, rounds: list[_Round], first: tuple[float, ...]) -> tuple[LinkFacts, ...]:
        names = [self._topology.draft_node.name, *(stage.name for stage in self._topology.stages)]
        links = []
        for sender, receiver in zip(names, [*names[1:], names[0]], strict=True):
            trips = first if sender == names[0] else self._trips(rounds, sender)
            rate = self._rate(rounds, names, sender)
            links.append(LinkFacts(sender, receiver, median(trips) if trips else None, rate))
        return tuple(links)

    def _trips(self, rounds: list[_Round], stage: str) -> list[float]:
        return [trip for each in rounds if stage in each.answers for trip in each.answers[stage][0].round_trips]

    def _rate(self, rounds: list[_Round], names: list[str], sender: str) -> float | None:
        """Bytes per second from `sender` to the next node."""
        transits = [(each.payload, self._transit(each, names, sender)) for each in rounds]
        empty = [transit for payload, transit in transits if transit is not None and not payload]
        large = [transit for payload, transit in transits if transit is not None and payload]
        if not empty or not large or min(large) <= min(empty):
            return None
        payload = max(each.payload for each in rounds)
        return payload / ((min(large) - min(empty)) / 1e9)

    def _transit(self, each: _Round, names: list[str], sender: str) -> int | None:
        """Nanoseconds over the link behind `sender`, by the clocks at its two ends."""
        index = names.index(sender)
        if sender == names[-1]:
            found = each.answers.get(sender)
            return None if found is None else found[1] - found[0].answered
        receiver = each.answers.get(names[index + 1])
        return None if receiver is None else receiver[0].arrived - receiver[0].left
