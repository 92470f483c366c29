"""What happens in a simulation as the spans of a trace, on the virtual clock's time line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowspec.planning.stage import Flight
from flowspec.schedule.choice import Choice, choices, was_guessed
from flowspec.schedule.events import Command, EmitTokens, Event, GrowTree, SegmentReturned
from flowspec.synthetic.guesses import Children
from flowspec.topology.link_calendar import HEADER_BYTES
from flowspec.tracing.spans import Span, Value
from flowspec.tracing.trace import Trace

if TYPE_CHECKING:
    from flowspec.planning.simulator import Simulation

DRAFT_NODE = "draft"


class Observer:
    """Watches one `Simulation`; changes nothing."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._arrivals: dict[tuple[int, int], float] = {}
        self._sent: dict[int, tuple[str, tuple[int, ...], dict[str, Value]]] = {}
        self._guessed = False

    def attach(self, run: Simulation) -> None:
        self._run = run
        self.nodes = (DRAFT_NODE, *(f"stage-{number + 1}" for number in range(len(run.pipe.stages))))

    def trace(self, policy: str) -> Trace:
        """Everything that was seen, of sessions that were all decoded with `policy`."""
        for session in self._run.sessions:
            result = session.result
            args: dict[str, Value] = {"prompt": session.story.decree + 1, "tokens": len(result.tokens)}
            self._span(DRAFT_NODE, "request", result.asked, result.last - result.asked, args, session.name)
        for name, serials, args in self._sent.values():
            story = next(session.story for session in self._run.sessions if session.name == name)
            args["useful"] = sum(serial <= story.decree or story.accepted(serial) for serial in serials)
        requests = [{"session": session.name, "policy": policy} for session in self._run.sessions]
        return Trace.of(self.spans, self.nodes, {"simulated": True, "requests": requests})

    def _span(self, node: str, kind: str, start: float, duration: float, args: dict[str, Value], session: str) -> None:
        self.spans.append(Span(node, kind, start, duration, args, session))

    def _name(self, flight: Flight) -> str:
        return self._run.sessions[flight.session].name

    # ---- the draft node ----------------------------------------------------------------------------------------------

    def happened(self, event: Event) -> None:
        """The scheduler is about to hear of an event."""
        self._guessed = was_guessed(event, self._run.scheduler)

    def decided(self, event: Event, commands: Sequence[Command]) -> None:
        """The scheduler has heard of it and said what to do."""
        now = self._run.clock.now
        if isinstance(event, SegmentReturned):
            args: dict[str, Value] = {
                "ticket": event.ticket,
                "frontier": -1 if event.frontier is None else event.frontier,
                "token": -1 if event.token is None else event.token,
                "moved": int(any(isinstance(each, EmitTokens) and each.session == event.session for each in commands)),
                "guessed": int(self._guessed),
            }
            self._span(DRAFT_NODE, "returned", now, 0.0, args, event.session)
        for command in commands:
            if isinstance(command, EmitTokens):
                self._span(DRAFT_NODE, "emitted", now, 0.0, {"tokens": len(command.tokens)}, command.session)
        for choice in choices(commands, self._run.scheduler):
            self._chosen(choice)

    def _chosen(self, choice: Choice) -> None:
        send = choice.send
        args: dict[str, Value] = {
            "ticket": send.ticket,
            "number": send.number,
            "tokens": len(send.draft),
            "waiting": choice.waiting,
            "tree": choice.tree,
            "flying": choice.flying,
            "root": int(choice.root),
            "prompt": int(choice.prompt),
        }
        self._sent[send.ticket] = send.session, send.draft.serials, args
        self._span(DRAFT_NODE, "chosen", self._run.clock.now, 0.0, args, send.session)

    def drafted(self, asked: float, command: GrowTree, children: Children) -> None:
        """A step of the drafter has ended."""
        args: dict[str, Value] = {
            "expanded": len(command.expand),
            "given": len(command.draft),
            "children": sum(len(guesses) for _, guesses in children),
        }
        self._span(DRAFT_NODE, "drafted", asked, self._run.clock.now - asked, args, command.session)

    # ---- the pipe ----------------------------------------------------------------------------------------------------

    def carried(self, index: int, flight: Flight, tokens: int, arrives: float) -> None:
        """A segment leaves towards the stage at `index`, or (the last index) back to the draft node."""
        if flight.opens:
            return
        links = self._run.pipe.links
        now = self._run.clock.now
        args: dict[str, Value] = {
            "ticket": flight.ticket,
            "bytes": HEADER_BYTES + tokens * links[index].token_bytes,
            "to": self.nodes[(index + 1) % len(self.nodes)],
        }
        self._span(self.nodes[index], "transfer", now, arrives - now, args, self._name(flight))

    def arrived(self, stage: int, flight: Flight) -> None:
        self._arrivals[stage, flight.ticket] = self._run.clock.now

    def begun(self, stage: int, flight: Flight, tokens: int) -> None:
        arrived, now = self._arrivals.pop((stage, flight.ticket)), self._run.clock.now
        self._span(
            self.nodes[stage + 1], "queued", arrived, now - arrived, {"ticket": flight.ticket}, self._name(flight)
        )

    def done(self, stage: int, flight: Flight, began: float, tokens: int, computed: int) -> None:
        kept = len(flight.serials)
        outcome = "whole" if kept == tokens else "pruned"
        if not computed:
            outcome = "dead"
        elif not kept:
            outcome = "abandoned"
        args: dict[str, Value] = {
            "ticket": flight.ticket,
            "number": flight.number,
            "tokens": tokens,
            "computed": computed,
            "kept": kept,
            "outcome": outcome,
        }
        duration = self._run.clock.now - began
        self._span(self.nodes[stage + 1], "segment", began, duration, args, self._name(flight))

    def judged(self, flight: Flight, heard: float) -> None:
        """The tail has published a verdict, which the other stages hear at `heard`."""
        story = flight.story
        assert story.frontier is not None
        assert story.token is not None
        args: dict[str, Value] = {"ticket": flight.ticket, "frontier": story.frontier, "token": story.token}
        self._span(self.nodes[-1], "verdict", self._run.clock.now, 0.0, args, self._name(flight))
        for node in self.nodes[1:-1]:
            told: dict[str, Value] = {"frontier": story.frontier, "token": story.token}
            self._span(node, "heard", heard, 0.0, told, self._name(flight))
