"""One request being decoded, as its coordinator sees it: prompt, tree, segments in flight, what the client was told.

Shared by all policies: prefill in chunks, verdicts, trimming at EOS and limit, counters, the new epoch after a loss.
Does not choose what to send or when (the policy does) and knows neither the pipe nor other sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowspec.errors import InvariantViolation
from flowspec.schedule.events import Command, EmitTokens, FinishSession, SendSegment, SessionRequested
from flowspec.schedule.options import OPTIONS, FlowspecOptions
from flowspec.schedule.recall import Recall
from flowspec.schedule.tree import DraftTree, Reroot
from flowspec.wire.messages import NO_PARENT, DraftTokens, RosterEntry


@dataclass(slots=True)
class Counters:
    """What a session did; the names are those of `GenerationStats`."""

    verdicts: int = 0
    """Verdicts that moved the frontier."""
    segments: int = 0
    drafted: int = 0
    """Tokens sent as guesses: neither prompt nor certain when they left."""
    accepted: int = 0
    """Those of them in the output."""
    pruned: int = 0
    """Those of them found dead."""


class Session:
    """State of one session. Prompt tokens are draft tokens by decree: serials 0 .. n-1, a chain."""

    def __init__(self, request: SessionRequested) -> None:
        if not request.prompt or request.max_new_tokens < 1:
            raise InvariantViolation("an empty prompt, or nothing to generate", session=request.session)
        self.name = request.session
        self.policy = request.policy
        self.options = request.options or OPTIONS[request.policy]()
        self.limit = request.max_new_tokens
        self.eos = request.eos
        self.drafter = request.drafter
        self.reads_features = request.features
        """The drafter reads the target's hidden states of accepted tokens."""
        looks_up = request.recalls and request.drafter and isinstance(self.options, FlowspecOptions)
        self.recall = Recall() if looks_up else None
        """What the text said before; None where that is not looked up, as in all policies but `flowspec`."""
        self.epoch = 0
        self.ready = False
        self.broken = False
        """Something was lost: in this epoch nothing more can be sent."""
        self.barren = 0
        """Epochs that ended since the last token was emitted."""
        self.finish_reason: str | None = None
        self.output: list[int] = list(request.resume)
        self.counters = Counters()
        self._asked = request.prompt
        self._begin(request.prompt + request.resume)

    def _begin(self, chain: tuple[int, ...]) -> None:
        self.prompt = chain
        """What this epoch began with by decree: the prompt, and after a loss everything that was emitted too."""
        self.prompt_sent = 0
        self.segments = 0
        self.flights: dict[int, tuple[int, ...]] = {}
        """Tickets of this epoch's segments in flight, with the serials in each."""
        self._told = len(self.output)
        self.verdict: tuple[int, int] | None = None
        self.features = 0
        """The drafter has the target's hidden states of all positions below this."""
        self.tree = DraftTree(self.decree, self.decree - 1 if self.decree else NO_PARENT, chain[-1])

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def prunes(self) -> bool:
        """Stages drop what verdicts say is dead."""
        return self.options.prunes

    @property
    def decree(self) -> int:
        """Serial of the last token that is accepted by decree."""
        return len(self.prompt) - 1

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted. A draft token at this depth or deeper could not matter any more."""
        return self.limit - len(self.output)

    @property
    def root_position(self) -> int:
        """Position of the root in the sequence, the first token of the prompt being at 0."""
        return self.decree + len(self.output) - self._told

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def active(self) -> bool:
        """The pipe may carry its segments."""
        return self.ready and not self.finished and not self.broken

    @property
    def prefilling(self) -> bool:
        """Some of the prompt has not been sent."""
        return self.prompt_sent < len(self.prompt)

    @property
    def root_waits(self) -> bool:
        """The certain token at the tip has not been sent: nothing can be gained before it is."""
        return not self.tree[self.tree.root].sent

    @property
    def stranded(self) -> bool:
        """Live tokens went out, nothing is in flight any more, and no verdict has come on them: none ever will."""
        return self.active and not self.flights and self.tree.sent > 0

    @property
    def live_work(self) -> int:
        """Tokens in flight that may still be of use."""
        if self.verdict is None:
            return sum(len(serials) for serials in self.flights.values())
        return self.tree.sent

    @property
    def roster_entry(self) -> RosterEntry:
        frontier, token = self.verdict or (None, None)
        return RosterEntry(self.name, self.epoch, frontier, token)

    @property
    def _forgetful(self) -> bool:
        text = len(self._asked) + len(self.output)
        return self.recall is not None and not self.prefilling and self.recall.known != text

    # ---- sending -----------------------------------------------------------------------------------------------------

    def prompt_chunk(self, size: int) -> DraftTokens:
        """The next `size` tokens of the prompt, or what is left of it."""
        serials = range(self.prompt_sent, min(self.prompt_sent + size, len(self.prompt)))
        parents = tuple(serial - 1 if serial else NO_PARENT for serial in serials)
        return DraftTokens(tuple(serials), parents, tuple(self.prompt[serial] for serial in serials))

    def dispatch(self, draft: DraftTokens, ticket: int) -> SendSegment:
        """Put `draft` into the next segment: a chunk of the prompt, or live tokens that have not been sent."""
        if self.prefilling:
            self.prompt_sent += len(draft)
            if self.recall is not None:
                # After a loss most of it is known.
                self.recall.take(self.prompt[self.recall.known : self.prompt_sent])
        else:
            self.counters.drafted += sum(serial != self.tree.root for serial in draft.serials)
        self.tree.mark_sent(serial for serial in draft.serials if serial >= self.tree.root)
        self.flights[ticket] = draft.serials
        self.counters.segments += 1
        self.segments += 1
        return SendSegment(self.name, self.epoch, self.segments - 1, ticket, self.decree, draft)

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def read_features(self, epoch: int, count: int) -> bool:
        """The drafter has features of all positions below `count`; False if that is not news."""
        news = epoch == self.epoch and count > self.features
        self.features = max(self.features, count) if news else self.features
        return news

    def acknowledge(self, epoch: int) -> bool:
        """Every stage has the session in `epoch`; False if that is not news."""
        news = epoch == self.epoch and not self.ready
        self.ready = self.ready or news
        return news

    def carries(self, ticket: int) -> bool:
        """Whether stages compute anything of that segment: what is of no use any more is passed over, if they prune."""
        serials = self.flights.get(ticket, ())
        spared = self.verdict is None or not self.prunes
        return not self.finished and (spared or self.tree.holds_any(serials))

    def load(self, ticket: int) -> int:
        """Tokens that stages compute of that segment, as far as is known here."""
        serials = self.flights.get(ticket, ())
        if self.verdict is None or not self.prunes:
            return len(serials)
        return sum(serial in self.tree for serial in serials)

    def land(self, ticket: int) -> None:
        """A segment came back; unknown tickets belong to an older epoch."""
        self.flights.pop(ticket, None)

    def lose(self, ticket: int) -> None:
        """A segment will not come back: caches have a gap."""
        self.flights.pop(ticket, None)
        self.broken = True

    def pause(self) -> None:
        """The pipe is lost, and with it all that is in flight."""
        self.flights.clear()
        self.broken = True

    def restart(self) -> None:
        """Begin again with empty caches, in a new epoch.

        The prompt and every token emitted, the sampled one at the tip included, are replayed by decree: only what
        comes after them is sampled, so nothing that a client was told is ever sampled again.
        """
        self.epoch += 1
        self.barren += 1
        self.ready = self.broken = False
        self._begin(self._asked + tuple(self.output))

    def advance(self, frontier: int | None, token: int | None) -> tuple[Reroot | None, list[Command]]:
        """Follow a verdict: move the root, emit what is final, finish at EOS or limit.

        Stale, doubled and empty verdicts change nothing: their frontier is not in the tree.
        """
        if frontier is None or token is None or frontier not in self.tree or self.finished:
            return None, []
        if not self.tree[frontier].sent:
            raise InvariantViolation(f"a verdict on token {frontier}, which was never sent", session=self.name)
        moved = self.tree.reroot(frontier, token)
        self.verdict = (frontier, token)
        self.counters.verdicts += 1
        self.counters.pruned += sum(dropped.sent for dropped in moved.dropped)
        return moved, self._emit(moved)

    def _emit(self, moved: Reroot) -> list[Command]:
        final = [(accepted.token, True) for accepted in moved.accepted]
        final.append((moved.root.token, moved.root.sent))
        final = final[: self.remaining]
        ended = next((i for i, (token, _) in enumerate(final) if token in self.eos), None)
        if ended is not None:
            final = final[: ended + 1]
        self.output.extend(token for token, _ in final)
        if self.recall is not None:
            self.recall.judge(moved)
            self.recall.take(token for token, _ in final)
        self.barren = 0
        self.counters.accepted += sum(drafted for _, drafted in final)
        commands: list[Command] = [
            EmitTokens(self.name, tuple(token for token, _ in final), tuple(drafted for _, drafted in final))
        ]
        if ended is not None:
            commands += self.stop("eos")
        elif self.remaining <= 0:
            commands += self.stop("length")
        return commands

    def stop(self, reason: str) -> list[Command]:
        """The session is over; its tickets still come back."""
        if self.finished:
            return []
        self.finish_reason = reason
        done = self.counters
        return [
            FinishSession(
                self.name, self.epoch, reason, done.verdicts, done.segments, done.drafted, done.accepted, done.pruned
            )
        ]

    def check_integrity(self) -> None:
        """Raise `InvariantViolation` where the session contradicts itself."""
        self.tree.check_integrity()
        if self.finished or self.broken:
            return
        problems = (
            (len(self.output) >= self.limit, "it should have finished"),
            (self.prefilling and self.verdict is not None, "a verdict before the end of the prompt"),
            (self.prefilling and self.tree.sent > 0, "draft tokens went before the prompt"),
            (self.stranded, "tokens are out, but no segment is in flight"),
            (self._forgetful, "what is recalled is not the text"),
            (self.counters.drafted < self.counters.accepted + self.counters.pruned, "the counters do not add up"),
        )
        for broken, problem in problems:
            if broken:
                raise InvariantViolation(problem, session=self.name)
