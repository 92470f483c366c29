"""What one stage notes of one traced session, and the messages that take it to the coordinator.

It exists only for sessions that were opened to be traced; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from flowspec.tracing.records import HEARD, PRUNED, VERDICT, VISIT, NodeClock, Recorder, parts
from flowspec.tracing.spans import OUTCOMES
from flowspec.wire.messages import Open, Segment, TraceRecords

MOST_ARRIVALS = 4096
"""Segments whose arrival is remembered until they leave: more than any queue holds."""

WHOLE, PRUNED_IN_PART, DEAD, ABANDONED = (OUTCOMES.index(name) for name in ("whole", "pruned", "dead", "abandoned"))


class StageTrace:
    """Arrivals and what is heard come from the event loop, the rest from there or from the compute thread."""

    def __init__(self, opened: Open, clock: NodeClock) -> None:
        self.clock = clock
        self._opened = opened
        self._recorder = Recorder()
        self._arrivals: dict[int, int] = {}
        self._computed: tuple[int, int, int] | None = None

    def arrived(self, ticket: int) -> None:
        """A segment was read from the pipe."""
        if len(self._arrivals) < MOST_ARRIVALS:
            self._arrivals[ticket] = self.clock()

    def computed(self, ticket: int, begun: int) -> None:
        """The compute thread is done with a segment."""
        self._computed = ticket, begun, self.clock()

    def heard(self, frontier: int, token: int) -> None:
        """A verdict came that was news."""
        self._recorder.add(HEARD, self.clock(), frontier, token)

    def pruned(self, frontier: int, rows: int, accepted: int) -> None:
        """By the verdict on `frontier`, `rows` rows were dropped and `accepted` joined the prefix."""
        self._recorder.add(PRUNED, self.clock(), frontier, rows, accepted)

    def verdict(self, ticket: int, verdict: tuple[int, int], *, at: int) -> None:
        """This is the tail, and what it sampled was published."""
        self._recorder.add(VERDICT, at, ticket, *verdict)

    def left(self, segment: Segment, computed: int, kept: int, *, abandoned: bool, at: int, size: int) -> None:
        """The segment is on its way on: `computed` of its tokens were computed here, `kept` travel on."""
        arrived = self._arrivals.pop(segment.ticket, None)
        times = self._computed
        if times is None or times[0] != segment.ticket:
            # Its step failed: the session is over, and says why elsewhere.
            return
        tokens = len(segment.draft)
        outcome = ABANDONED if abandoned else DEAD if not computed else WHOLE if kept == tokens else PRUNED_IN_PART
        _, begun, ended = times
        self._recorder.add(
            VISIT,
            begun if arrived is None else arrived,
            begun,
            ended,
            at,
            segment.ticket,
            segment.number,
            tokens,
            computed,
            kept,
            outcome,
            size,
        )

    def messages(self, node: str) -> Iterator[TraceRecords]:
        """Everything that was noted. Nothing may be noted after this."""
        records, dropped = self._recorder.finish()
        columns = list(parts(records))
        for number, (layouts, values) in enumerate(columns, start=1):
            last = number == len(columns)
            yield TraceRecords(
                node, self._opened.session, self._opened.epoch, layouts, values, dropped if last else 0, last
            )
