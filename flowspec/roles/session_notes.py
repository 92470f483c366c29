"""What the coordinator notes of one traced session: choices, drafter steps, verdicts, tokens.

Pure bookkeeping: it is told what happened and when, and makes records of it. Its memory is bounded.
"""

from __future__ import annotations

from flowspec.schedule.choice import Choice
from flowspec.schedule.events import GrowTree, SegmentReturned, TreeGrown
from flowspec.tracing.records import (
    CAPACITY,
    CHOSEN,
    DRAFTED,
    EMITTED,
    FEATURES,
    REQUEST,
    RETURNED,
    SENT,
    USEFUL,
    Record,
    Recorder,
)


class SessionNotes:
    """Times are nanoseconds of the coordinator's clock."""

    def __init__(self, asked: int, prompt: int) -> None:
        self._asked = asked
        self._prompt = prompt
        self._epoch = 0
        self._recorder = Recorder()
        self._tokens = 0
        self._step = (0, 0)
        self._sent: dict[int, tuple[int, int]] = {}
        """Parent and ticket by serial, of sent tokens that no verdict has decided about."""
        self._useful: dict[int, int] = {}
        """Tokens of the prompt or the output, by ticket."""

    def chosen(self, now: int, choice: Choice) -> None:
        """A segment was chosen."""
        command, draft = choice.send, choice.send.draft
        ticket, root, prompt = command.ticket, int(choice.root), int(choice.prompt)
        if command.epoch != self._epoch:
            self._epoch = command.epoch
            self._sent.clear()
        if prompt:
            self._count(ticket, len(draft))
        else:
            for serial, parent in zip(draft.serials, draft.parents, strict=True):
                self._sent[serial] = parent, ticket
        counts = len(draft), choice.waiting, choice.tree, choice.flying
        self._recorder.add(CHOSEN, now, ticket, command.number, *counts, root, prompt)

    def sent(self, at: int, ticket: int, size: int) -> None:
        self._recorder.add(SENT, at, ticket, size)

    def asked(self, command: GrowTree) -> None:
        """The drafter was asked; its answer is the next `drafted`."""
        self._step = len(command.expand), len(command.draft)

    def drafted(self, now: int, event: TreeGrown) -> None:
        children = sum(len(guesses) for _, guesses in event.children)
        self._recorder.add(DRAFTED, now - round(event.seconds * 1e9), now, *self._step, children)

    def returned(self, now: int, event: SegmentReturned, *, moved: bool, guessed: bool) -> None:
        """A segment came back, with a verdict that `moved` the root or was known already.

        `guessed`: the token that it samples was in the tree.
        """
        frontier, token = (-1 if value is None else value for value in (event.frontier, event.token))
        self._recorder.add(RETURNED, now, event.ticket, frontier, token, int(moved), int(guessed))
        if moved:
            self._decide(frontier)

    def emitted(self, now: int, tokens: int) -> None:
        self._tokens += tokens
        self._recorder.add(EMITTED, now, tokens)

    def features(self, now: int, stage: int, count: int, size: int) -> None:
        self._recorder.add(FEATURES, now, stage, count, size)

    def finish(self, now: int) -> tuple[list[Record], int]:
        """All records, and how many were dropped. Nothing may be noted after this."""
        self._recorder.add(REQUEST, self._asked, now, self._prompt, self._tokens)
        records, dropped = self._recorder.finish()
        return records + [(USEFUL, ticket, tokens) for ticket, tokens in self._useful.items()], dropped

    def _decide(self, frontier: int) -> None:
        """What leads to `frontier` is in the output; of all that was sent before it, nothing else ever will be."""
        serial = frontier
        while (known := self._sent.get(serial)) is not None:
            serial, ticket = known
            self._count(ticket, 1)
        for serial in [serial for serial in self._sent if serial <= frontier]:
            del self._sent[serial]

    def _count(self, ticket: int, tokens: int) -> None:
        self._useful[ticket] = self._useful.get(ticket, 0) + tokens
        if len(self._useful) > CAPACITY:
            del self._useful[next(iter(self._useful))]
