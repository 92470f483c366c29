"""What a node notes while a traced request runs: tuples of integers in a bounded ring, and their form on the wire.

A record is `(layout, times ..., values ...)`; times are nanoseconds of the node's own monotonic clock. What becomes of
records is `assembly`'s to say: here they only have to be cheap.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flowspec.errors import MalformedMessage

CAPACITY = 32_768
"""Records of one session that a node keeps: the newest."""

PART_RECORDS = 512
"""Most records in one message, so that a trace on its way holds nothing else up for long."""

Record = tuple[int, ...]
NodeClock = Callable[[], int]
"""A node's monotonic clock, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How many times a record begins with, and the names of the values after them."""

    name: str
    times: int
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.times + len(self.values)


LAYOUTS = (
    Layout("visit", 4, ("ticket", "number", "tokens", "computed", "kept", "outcome", "bytes")),
    Layout("verdict", 1, ("ticket", "frontier", "token")),
    Layout("heard", 1, ("frontier", "token")),
    Layout("pruned", 1, ("frontier", "rows", "accepted")),
    Layout("request", 2, ("prompt", "tokens")),
    Layout("chosen", 1, ("ticket", "number", "tokens", "waiting", "tree", "flying", "root", "prompt")),
    Layout("sent", 1, ("ticket", "bytes")),
    Layout("drafted", 2, ("expanded", "given", "children")),
    Layout("returned", 1, ("ticket", "frontier", "token", "moved", "guessed")),
    Layout("emitted", 1, ("tokens",)),
    Layout("features", 1, ("stage", "count", "bytes")),
    Layout("useful", 0, ("ticket", "tokens")),
)
VISIT, VERDICT, HEARD, PRUNED, REQUEST, CHOSEN, SENT, DRAFTED, RETURNED, EMITTED, FEATURES, USEFUL = range(len(LAYOUTS))
"""A visit is a segment's stay at a stage: times of arrival, begin, end and departure; the outcome is an index into
`flowspec.tracing.spans.OUTCOMES`."""


class Recorder:
    """The newest `capacity` records of one session at one node. Any thread may add.

    Full, each new record takes the place of the oldest; `dropped` counts those.
    """

    __slots__ = ("_added", "_ring")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: deque[Record] = deque(maxlen=capacity)
        self._added = itertools.count()

    def add(self, *record: int) -> None:
        self._ring.append(record)
        next(self._added)

    def finish(self) -> tuple[list[Record], int]:
        """The records, and how many were dropped before them. Nothing may be added after this."""
        records = list(self._ring)
        return records, next(self._added) - len(records)


def parts(records: Sequence[Record], size: int = PART_RECORDS) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The records as columns, at most `size` of them a time: layouts, and times and values of all one after the other.

    No records are one empty part.
    """
    for start in range(0, max(1, len(records)), size):
        some = records[start : start + size]
        yield tuple(record[0] for record in some), tuple(value for record in some for value in record[1:])


def joined(layouts: Sequence[int], values: Sequence[int]) -> list[Record]:
    """The records of one part. Raises `MalformedMessage` when the columns are not those of records."""
    records: list[Record] = []
    at = 0
    for layout in layouts:
        if not 0 <= layout < len(LAYOUTS):
            raise MalformedMessage(f"a trace holds records of layout {layout}, which there is not")
        end = at + LAYOUTS[layout].size
        records.append((layout, *values[at:end]))
        at = end
    if at != len(values):
        raise MalformedMessage(f"a trace of {len(values)} values, its records have {at}")
    return records
