"""What a scheduler chose from, and whether what a verdict told had been guessed: what a trace says of decisions.

Asked of a scheduler around an event, by whoever writes a trace of it: a coordinator or a simulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowspec.schedule.arbiter import Scheduler
from flowspec.schedule.events import Command, Event, SegmentReturned, SendSegment


@dataclass(frozen=True, slots=True)
class Choice:
    """A segment beside the tree from which it was chosen; counts of tokens."""

    send: SendSegment
    waiting: int
    """Those that had not been sent, its own included."""
    tree: int
    """Live ones, the root included."""
    flying: int
    """Those of them that were in flight before it."""
    root: bool
    """It holds the certain token."""
    prompt: bool
    """It is a chunk of the prompt."""


def was_guessed(event: Event, scheduler: Scheduler) -> bool:
    """Whether it is a verdict, and the token that it samples is in the tree; `scheduler` has not heard of it yet."""
    if not isinstance(event, SegmentReturned) or event.frontier is None:
        return False
    session = scheduler.sessions.get(event.session)
    frontier = session.tree.get(event.frontier) if session is not None else None
    return frontier is not None and event.token in frontier.children


def choices(commands: Sequence[Command], scheduler: Scheduler) -> Iterator[Choice]:
    """The segments among `commands`, with which `scheduler` has just answered, of sessions that go on."""
    sends = [each for each in commands if isinstance(each, SendSegment)]
    for place, send in enumerate(sends):
        session = scheduler.sessions.get(send.session)
        if session is None:
            continue
        tree, draft = session.tree, send.draft
        # The tree knows of all that was chosen just now.
        later = sum(len(each.draft) for each in sends[place:] if each.session == send.session)
        flying = max(0, tree.sent - later)
        prompt = draft.serials[0] <= send.decree
        yield Choice(
            send,
            waiting=len(draft) if prompt else len(tree) - flying,
            tree=len(tree),
            flying=flying,
            root=not prompt and tree.root in draft.serials,
            prompt=prompt,
        )
