"""Who is there, who fits, which channels are proven: the coordinator's picture of its stages.

Pure: it is told what arrived and at what time, and answers questions. It sends nothing and reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowspec.schedule.events import PipeProfile
from flowspec.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello, NodeStatus, ProbeSeen, TimeCurve

MOST_REFUSED = 16
"""Refused nodes that are remembered, the newest ones; a beacon tells them why. As many challenge one place."""


@dataclass(slots=True)
class Peer:
    """One stage as the coordinator knows it."""

    name: str
    channels: frozenset[str]
    """The channels that this stage must prove."""
    hello: Hello | None = None
    seen: set[str] = field(default_factory=set)
    last_heard: float = 0.0
    heartbeat: Heartbeat | None = None
    leaving: bool = False
    lost: bool = False
    challengers: dict[str, float] = field(default_factory=dict)
    """Incarnations that want this place while another has it, each with the time of its first hello."""

    @property
    def ready(self) -> bool:
        return self.hello is not None and not self.lost and self.channels <= self.seen

    @property
    def state(self) -> str:
        if self.lost:
            return "lost"
        if self.hello is None:
            return "waiting"
        if self.leaving:
            return "leaving"
        return "ready" if self.ready else "probing"


class Handshake:
    """All stages of a pipe, in order; `fingerprint` and `tokenizer` are the coordinator's own."""

    def __init__(self, names: list[str], *, coordinator: str, fingerprint: str, tokenizer: str, layers: int) -> None:
        tail = names[-1]
        self.peers = {
            name: Peer(name, frozenset({"hints", "forward"} | ({"verdicts"} if name != tail else set())))
            for name in names
        }
        self.refused: dict[str, str] = {}
        self._reserved: dict[str, str] = {}
        """Places for which only one incarnation is welcome: that of a spare."""
        self._names = names
        self._coordinator = coordinator
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self._layers = layers

    @property
    def ready(self) -> bool:
        return all(peer.ready for peer in self.peers.values())

    @property
    def welcomed(self) -> tuple[str, ...]:
        return tuple(peer.hello.incarnation for peer in self.peers.values() if peer.hello is not None and not peer.lost)

    @property
    def introduced(self) -> bool:
        """Every stage has said hello, so that probes through the pipe make sense."""
        return all(peer.hello is not None and not peer.lost for peer in self.peers.values())

    def hello(self, message: Hello, now: float, patience: float) -> Peer | None:
        """A stage said hello. Returns its peer when this replaces a former incarnation, i.e. its caches are gone.

        A restarted stage and a second one of the same name look alike at first. The newcomer, which goes on saying
        hello, gets the place when the former one has been silent for `patience` seconds; if that is heard then, it is
        alive and keeps the place, and the newcomer is refused. What is heard sooner may have been said long before, and
        have waited here: messages of different nodes are not in order.
        """
        peer = self.peers.get(message.node)
        if self._reserved.get(message.node, message.incarnation) != message.incarnation:
            return None
        reason = self._objection(message, patience)
        if reason is not None:
            self.refused[message.incarnation] = reason
            _keep_newest(self.refused)
            return None
        assert peer is not None
        if peer.hello is not None and peer.hello.incarnation == message.incarnation:
            if peer.lost:
                peer.lost, peer.seen = False, set()
            peer.last_heard = now
            return None
        replaced = peer.hello is not None and not peer.lost
        if replaced and now - max(peer.challengers.setdefault(message.incarnation, now), peer.last_heard) < patience:
            _keep_newest(peer.challengers)
            return None
        if replaced:
            self.lose(peer)
        peer.hello, peer.seen, peer.last_heard = message, set(), now
        peer.lost = peer.leaving = False
        peer.heartbeat = None
        peer.challengers.clear()
        return peer if replaced else None

    def reserve(self, name: str, incarnation: str | None) -> None:
        """From now on nobody but `incarnation` (None: whoever comes) may have the place of a stage; others wait."""
        if incarnation is None:
            self._reserved.pop(name, None)
        else:
            self._reserved[name] = incarnation

    def probe_seen(self, message: ProbeSeen, now: float) -> None:
        peer = self.known(message.node, message.incarnation)
        if peer is not None:
            peer.seen.add(message.channel)
            peer.last_heard = now

    def heartbeat(self, message: Heartbeat, now: float) -> None:
        peer = self.known(message.node, message.incarnation)
        if peer is not None:
            peer.heartbeat = message
            peer.last_heard = now

    def leaving(self, name: str, incarnation: str) -> None:
        peer = self.known(name, incarnation)
        if peer is not None:
            peer.leaving = True

    def silent(self, now: float, deadline: float) -> list[Peer]:
        """Stages that were there and have not been heard for `deadline` seconds; each is reported once."""
        lost = [
            peer
            for peer in self.peers.values()
            if peer.hello is not None and not peer.lost and now - peer.last_heard > deadline
        ]
        for peer in lost:
            self.lose(peer)
        return lost

    def heard_last(self, now: float) -> float:
        """When the stage that has been silent for longest was heard; `now` without any."""
        return min((peer.last_heard for peer in self.peers.values() if peer.hello and not peer.lost), default=now)

    def excuse(self, seconds: float) -> None:
        """For so long nobody could have been heard here."""
        for peer in self.peers.values():
            peer.last_heard += seconds
            # Who was heard before a newcomer came was so still.
            peer.challengers = {incarnation: since + seconds for incarnation, since in peer.challengers.items()}

    def lose(self, peer: Peer) -> None:
        """Its caches are gone. When it was the tail, nobody is known to hear the next one's verdicts."""
        peer.lost = True
        peer.seen = set()
        if peer.name == self._names[-1]:
            for other in self.peers.values():
                other.seen.discard("verdicts")

    def missing(self) -> str:
        """What the pipe still waits for, for people."""
        parts = []
        for peer in self.peers.values():
            if peer.lost:
                parts.append(f"{peer.name} (lost)")
            elif peer.hello is None:
                parts.append(f"{peer.name} (no hello yet)")
            elif not peer.ready:
                parts.append(f"{peer.name} (unproven: {', '.join(sorted(peer.channels - peer.seen))})")
        return ", ".join(parts)

    def status(self) -> tuple[NodeStatus, ...]:
        return tuple(_status(peer) for peer in self.peers.values())

    def profile(self, links: tuple[float, ...], carrying: tuple[float, ...], host: str) -> PipeProfile:
        """The pipe as measured by its nodes; `links` and `carrying` are a `PipeProfile`'s, `host` is this machine."""
        hellos = [peer.hello for peer in self.peers.values() if peer.hello is not None]
        machines: dict[str, list[int]] = {}
        for index, hello in enumerate(hellos):
            machines.setdefault(hello.host, []).append(index)
        shared = tuple(
            (hellos[indices[0]].cores, tuple(indices), tuple(_points(hellos[index].work) for index in indices))
            for machine, indices in machines.items()
            if len(indices) > 1 or machine == host
        )
        return PipeProfile(
            stages=tuple(_points(hello.curve) for hello in hellos),
            links=links,
            shared=shared,
            drafter_shares=host in machines,
            carrying=carrying,
        )

    def on_other_machines(self, host: str) -> tuple[str, ...]:
        """Stages whose machine, and so whose clock, is not that of `host`."""
        return tuple(peer.name for peer in self.peers.values() if peer.hello is not None and peer.hello.host != host)

    def known(self, name: str, incarnation: str) -> Peer | None:
        """The peer of a stage that is there as this incarnation."""
        peer = self.peers.get(name)
        if peer is None or peer.hello is None or peer.hello.incarnation != incarnation or peer.lost:
            return None
        return peer

    def _objection(self, hello: Hello, patience: float) -> str | None:
        """Why this node cannot take part, naming both sides; None when it fits."""
        pair = f"{hello.node} and {self._coordinator}"
        if hello.protocol != PROTOCOL_VERSION:
            return f"{pair} speak different protocol versions: {hello.protocol} and {PROTOCOL_VERSION}"
        peer = self.peers.get(hello.node)
        if peer is None:
            return f"{hello.node} is not a stage of the topology of {self._coordinator}"
        if hello.fingerprint != self.fingerprint:
            return f"{pair} hold different models: {hello.fingerprint[:12]} and {self.fingerprint[:12]}"
        if hello.tokenizer != self.tokenizer:
            return f"{pair} hold different tokenizers: {hello.tokenizer[:12]} and {self.tokenizer[:12]}"
        challenged = peer.challengers.get(hello.incarnation)
        there = peer.hello if not peer.lost else None
        if there is not None and challenged is not None and peer.last_heard - challenged > patience / 2:
            place = "on the same machine" if there.host == hello.host else "on another machine"
            return f"a second node named {hello.node}: one is alive already, {place}"
        return self._layer_objection(hello)

    def _layer_objection(self, hello: Hello) -> str | None:
        index = self._names.index(hello.node)
        neighbours = ((index - 1, "end_layer", hello.first_layer), (index + 1, "first_layer", hello.end_layer))
        for other, edge, mine in neighbours:
            if not 0 <= other < len(self._names):
                expected = 0 if other < 0 else self._layers
                if mine != expected:
                    held = f"{hello.first_layer}-{hello.end_layer - 1}"
                    return f"{hello.node} holds layers {held}; the pipe needs {expected} at its edge"
                continue
            neighbour = self.peers[self._names[other]].hello
            if neighbour is None:
                continue
            if getattr(neighbour, edge) != mine:
                return (
                    f"{hello.node} (layers {hello.first_layer}-{hello.end_layer - 1}) and {neighbour.node} "
                    f"(layers {neighbour.first_layer}-{neighbour.end_layer - 1}) do not join"
                )
            if neighbour.dtype != hello.dtype:
                return f"{hello.node} runs in {hello.dtype}, {neighbour.node} in {neighbour.dtype}"
        return None


def _keep_newest(known: dict[str, Any]) -> None:
    """At most `MOST_REFUSED`, in the order in which they came."""
    while len(known) > MOST_REFUSED:
        del known[next(iter(known))]


def _points(curve: TimeCurve) -> tuple[tuple[int, float], ...]:
    return tuple(zip(curve.tokens, curve.seconds, strict=True))


def _status(peer: Peer) -> NodeStatus:
    hello, heartbeat = peer.hello, peer.heartbeat
    return NodeStatus(
        peer.name,
        peer.state,
        hello.first_layer if hello else 0,
        hello.end_layer if hello else 0,
        hello.dtype if hello else "",
        hello.weight_bytes if hello else 0,
        heartbeat.segments if heartbeat else 0,
        heartbeat.busy_seconds if heartbeat else 0.0,
        heartbeat.rows if heartbeat else 0,
        heartbeat.sessions if heartbeat else 0,
        heartbeat.queued if heartbeat else 0,
        heartbeat.refused if heartbeat else 0,
    )
