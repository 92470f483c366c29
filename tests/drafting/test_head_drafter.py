"""The head drafter answers what a head says by definition, whenever tokens, verdicts and features come."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from flowspec.drafting import head_rows
from flowspec.drafting.drafter import Children, Unwanted
from flowspec.drafting.eagle import EagleHead
from flowspec.drafting.eagle3 import Eagle3Head
from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_drafter import HeadDrafter
from flowspec.drafting.head_rows import DEEPEST, EARLY
from flowspec.model.sampling import Sampler, TokenHistory
from flowspec.schedule.events import GrowTree
from flowspec.wire.messages import NO_PARENT, DraftTokens
from flowspec.wire.parameters import SamplingParameters
from tests.drafting.heads import SmallHead, from_scratch

SAMPLING = {
    "greedy": SamplingParameters(),
    "noise": SamplingParameters(temperature=0.9, seed=5),
    "cuts": SamplingParameters(temperature=1.2, top_k=5, top_p=0.95, seed=6),
    "penalty": SamplingParameters(temperature=0.7, repetition_penalty=1.5, seed=7),
}
VOCABULARY = 12
PART = [1, 2, 4, 5, 6, 9, 11]
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "target_hidden_size": 8,
    "vocab_size": VOCABULARY,
    "intermediate_size": 16,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 4,
}


def eagle() -> EagleHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = EagleHead(HeadConfig("eagle", draft_vocab_size=VOCABULARY, taps=(-1,), **SIZES)).double()
    return spread(head)


def eagle3() -> Eagle3Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = HeadConfig("eagle3", draft_vocab_size=len(PART), taps=(1, 2, 3), layer_count=2, **SIZES)
        head = Eagle3Head(config).double()
    head.target_tokens = torch.tensor(PART)
    return spread(head)


def spread(head: Any) -> Any:
    """Larger weights, so that what a row sees shows in its logits."""
    for parameter in head.parameters():
        parameter.data.mul_(2)
    return head


HEADS: dict[str, Callable[[], Any]] = {
    "one layer": lambda: SmallHead(),
    "two layers": lambda: SmallHead(layers=2),
    "draft vocabulary": lambda: SmallHead(target_tokens=PART),
    "eagle": eagle,
    "eagle3 of two layers": eagle3,
}
WIDTH = 3


def features_of(first: int, count: int, size: int = SmallHead.feature_size) -> torch.Tensor:
    """What a target would say of positions of the accepted chain: the same whenever it is asked."""
    drawn = [torch.randn(size, generator=torch.Generator().manual_seed(100 + p)) for p in range(first, first + count)]
    return torch.stack(drawn).double() if drawn else torch.empty(0, size, dtype=torch.float64)


def chain_request(tokens: list[int], session: str = "s", epoch: int = 0) -> GrowTree:
    """The first request of a session: its prompt, whose last token is to be expanded."""
    last = len(tokens) - 1
    return GrowTree(
        session, epoch, (last,), DraftTokens(tuple(range(last + 1)), tuple(range(-1, last)), tuple(tokens)), last
    )


def opened(head: Any, sampling: SamplingParameters | None = None, row_limit: int = 300) -> HeadDrafter:
    drafter = HeadDrafter(head)
    drafter.open("s", sampling or SamplingParameters(), row_limit)
    return drafter


@dataclass
class Known:
    parent: int
    token: int
    position: int
    given: bool = False


@dataclass
class Decoding:
    """A coordinator with a target that accepts at random, and what the drafter must answer it, from scratch."""

    head: Any
    sampling: SamplingParameters
    draw: random.Random
    prompt: list[int]
    tokens: dict[int, Known] = field(default_factory=dict)
    """All that ever were, by serial."""
    live: set[int] = field(default_factory=set)
    told: tuple[int, int] | None = None
    owed: list[int] = field(default_factory=list)
    end: int = 0
    """Positions whose features the drafter has."""
    exact: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """Output by definition of each row when it was known to have it last; None when it was computed from other rows."""
    compared: int = 0
    stale: int = 0

    def __post_init__(self) -> None:
        self.drafter = opened(self.head, self.sampling)
        for serial, token in enumerate(self.prompt):
            self.tokens[serial] = Known(serial - 1, token, serial)
        self.root = len(self.prompt) - 1
        self.decree = self.root
        self.live = {self.root}
        self.owed = list(range(self.root))
        self.serial = self.root + 1

    def path(self, serial: int) -> list[int]:
        found = [serial]
        while found[-1] > 0:
            found.append(self.tokens[found[-1]].parent)
        return found[::-1]

    def children(self, serial: int) -> dict[int, int]:
        return {self.tokens[s].token: s for s in self.live if self.tokens[s].parent == serial and s != self.root}

    def join(self, parent: int, token: int) -> int:
        self.tokens[self.serial] = Known(parent, token, self.tokens[parent].position + 1)
        self.live.add(self.serial)
        self.serial += 1
        return self.serial - 1

    # ---- moves

    def hear_features(self) -> None:
        """Features of accepted positions: in order, doubled, behind a gap."""
        accepted = self.tokens[self.root].position
        first = self.draw.randint(max(0, self.end - 3), self.end + (self.draw.random() < 0.1))
        last = self.draw.randint(first, max(first, accepted))
        if last > first and last <= accepted:
            self.drafter.take_features("s", 0, first, features_of(first, last - first, self.head.feature_size))
            if first <= self.end:
                self.end = max(self.end, last)

    def hear_verdict(self) -> None:
        """The target accepts a few drafts, and names the token after them."""
        passed = [self.root]
        for _ in range(self.draw.randint(0, 3)):
            below = list(self.children(passed[-1]).values())
            if not below:
                break
            passed.append(self.draw.choice(sorted(below)))
        below = self.children(passed[-1])
        token = self.draw.choice([*sorted(below), self.draw.randrange(self.head.vocab_size)])
        root = below[token] if token in below else self.join(passed[-1], token)
        after = [*passed[1:], root]
        for accepted, successor in zip(passed, after, strict=True):
            if self.tokens[accepted].given:
                self.told = (accepted, self.tokens[successor].token)
            else:
                self.owed.append(accepted)
        self.root = root
        self.live = {serial for serial in self.live if root in self.path(serial)}

    def add_strange_tokens(self) -> None:
        """Another drafter guesses too."""
        parent = self.draw.choice(sorted(self.live))
        for _ in range(self.draw.randint(1, 4)):
            token = self.draw.randrange(self.head.vocab_size)
            parent = self.children(parent).get(token) or self.join(parent, token)

    def grow(self, everything: bool) -> None:
        chosen = sorted(self.live) if everything else self.draw.sample(sorted(self.live), min(3, len(self.live)))
        expand = tuple(sorted(chosen))
        missing = sorted({s for e in expand for s in self.path(e) if s in self.live and not self.tokens[s].given})
        rows = [*self.owed, *missing]
        draft = DraftTokens(
            tuple(rows),
            tuple(self.tokens[s].parent if s else NO_PARENT for s in rows),
            tuple(self.tokens[s].token for s in rows),
        )
        for serial in rows:
            self.tokens[serial].given = True
        frontier, token = self.told or (None, None)
        answer = self.drafter.grow(GrowTree("s", 0, expand, draft, self.decree, frontier, token), WIDTH)
        if self.owed and self.root != self.decree:
            self.told = (self.owed[-1], self.tokens[self.root].token)
        self.owed = []
        assert {serial for serial, _ in answer} == {serial for serial in expand if self.reachable(serial)}
        self.check(expand, answer)
        for serial, children in answer:
            for child, _ in children:
                if child not in self.children(serial) and self.draw.random() < 0.7:
                    self.join(serial, child)

    def reachable(self, serial: int) -> bool:
        """The row can be made: its state is known, or the outputs above it are not too far away."""
        path = [s for s in self.path(serial) if self.tokens[s].position > 0]
        new = [s for s in path if s not in self.exact and self.tokens[s].position > self.end]
        return bool(path) and (self.end > 0 or path[0] in self.exact) and len(new) <= DEEPEST

    def check(self, expand: tuple[int, ...], answer: Children) -> None:
        """An answer is exact when all rows on its path are: those from true states, those that are new, or of draft
        tokens in `expand`, if what they read of their parents is, and others as long as nothing came that changes them.
        Of a parent that had a row before, that is read which it was before this step."""
        again = {serial for serial in expand if serial > self.decree}
        before = dict(self.exact)
        fresh: set[int] = set()

        def was_exact(serial: int, output: torch.Tensor) -> bool:
            known = before[serial]
            return known is not None and torch.allclose(known, output, atol=1e-12, rtol=0)

        for serial, children in sorted(answer):
            path = self.path(serial)
            tokens = [self.tokens[s].token for s in path]
            outputs = from_scratch(self.head, tokens, features_of(0, self.end, self.head.feature_size))
            ok = True
            for place, (known, output) in enumerate(zip(path[1:], outputs, strict=True)):
                if known in fresh or self.tokens[known].position <= self.end:
                    pass
                elif known in before and known not in again:
                    ok = ok and was_exact(known, output)
                else:
                    above = path[place]
                    ok = ok and (above not in before or was_exact(above, outputs[place - 1]))
                if ok:
                    fresh.add(known)
                if ok or known in again or known not in self.exact:
                    self.exact[known] = output if ok else None
            if ok:
                self.compare(children, outputs[-1:], tokens)
            self.compared += ok
            self.stale += not ok

    def compare(self, children: tuple[tuple[int, float], ...], output: torch.Tensor, tokens: list[int]) -> None:
        logits = self.head.output(output)
        if self.head.target_tokens is not None:
            whole = torch.full((1, self.head.vocab_size), -torch.inf, dtype=torch.float64)
            whole[:, self.head.target_tokens] = logits
            logits = whole
        history = TokenHistory(self.head.vocab_size)
        history.add(tokens)
        (expected,) = Sampler(self.sampling, self.head.vocab_size).rank(logits, [len(tokens)], WIDTH, history, [()])
        assert [token for token, _ in children] == [token for token, _ in expected]
        assert [score for _, score in children] == pytest.approx([score for _, score in expected], abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        *((kind, sampling) for kind in ("one layer", "draft vocabulary") for sampling in SAMPLING),
        ("two layers", "greedy"),
        ("eagle", "noise"),
        ("eagle3 of two layers", "penalty"),
    ],
)
@pytest.mark.parametrize("everything", [True, False], ids=["all expanded again", "some"])
@torch.inference_mode()
def test_children_are_those_of_an_evaluation_from_scratch(kind: str, sampling: str, everything: bool) -> None:
    compared = stale = 0
    for seed in range(1, 4) if kind.startswith("eagle") else range(6):  # an evaluation of these takes long
        draw = random.Random(seed)
        prompt = [draw.randrange(12) for _ in range([1, 2, 3, 5, 11, 40][seed])]
        decoding = Decoding(HEADS[kind](), SAMPLING[sampling], draw, prompt)
        for _ in range(25):
            match draw.randrange(6):
                case 0 | 1:
                    decoding.hear_features()
                case 2:
                    decoding.hear_verdict()
                case 3 if draw.random() < 0.3:
                    decoding.add_strange_tokens()
                case _:
                    decoding.grow(everything and len(decoding.live) < 25)
            rows = decoding.drafter._sessions["s"].rows if decoding.drafter._sessions else None
            if rows is not None:
                rows.cache.check_integrity()
                assert len(rows._made) == len(rows._read) == len(rows._true) == rows.cache.tree_rows
                assert rows._settled + len(rows._unsettled) == rows.cache.prefix
        compared += decoding.compared
        stale += decoding.stale
    assert compared > 40
    assert compared > stale


PROMPT = [5, 9, 1, 4, 7]


def after_prompt(head: SmallHead, prompt: list[int] | None = None) -> HeadDrafter:
    """A session that has read its prompt, with all the features that its rows take."""
    prompt = PROMPT if prompt is None else prompt
    drafter = opened(head)
    assert drafter.grow(chain_request(prompt), 2) == ()
    drafter.take_features("s", 0, 0, features_of(0, len(prompt) - 1))
    return drafter


def ask(expand: tuple[int, ...], *draft: tuple[int, int, int], told: tuple[int, int] | None = None) -> GrowTree:
    """A later request after `PROMPT`; `draft` are (serial, parent, token)."""
    serials, parents, tokens = zip(*draft, strict=True) if draft else ((), (), ())
    return GrowTree("s", 0, expand, DraftTokens(serials, parents, tokens), len(PROMPT) - 1, *(told or (None, None)))


def expected(head: SmallHead, tokens: list[int], features: int, width: int = 2) -> list[tuple[int, float]]:
    logits = head.output(from_scratch(head, tokens, features_of(0, features))[-1:])
    return Sampler(SamplingParameters(), VOCABULARY).rank(logits, [len(tokens)], width)[0]


def same(found: tuple[tuple[int, float], ...], wanted: list[tuple[int, float]]) -> bool:
    return [token for token, _ in found] == [token for token, _ in wanted] and [
        score for _, score in found
    ] == pytest.approx([score for _, score in wanted], abs=1e-9)


def test_a_step_is_one_forward_and_one_lm_head() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    assert (head.forwards, head.outputs) == ([], 0)
    drafter.grow(ask((4,)), 3)
    drafter.grow(ask((5, 6, 7), (5, 4, 1), (6, 4, 2), (7, 4, 3)), 3)
    drafter.grow(ask((8, 9), (8, 5, 1), (9, 6, 2)), 3)
    assert (head.forwards, head.outputs) == ([4, 3, 2], 3)
    # The target follows 5 and goes on as guessed: 5's row is made from its feature, with what is new elsewhere.
    drafter.take_features("s", 0, 4, features_of(4, 1))
    drafter.grow(ask((5, 10), (10, 8, 4), told=(4, 1)), 3)
    assert (head.forwards[3:], head.outputs) == ([2], 4)
    # Nothing came since: what is asked again costs only its scores.
    drafter.grow(ask((5, 10), told=(4, 1)), 3)
    assert (head.forwards[4:], head.outputs) == ([], 5)
    # 8 takes 5's newer output; 10 was not asked for, and stays.
    drafter.grow(ask((8,), told=(4, 1)), 3)
    assert (head.forwards[4:], head.outputs) == ([1], 6)
    # A miss with its features: one row, whatever was pruned.
    drafter.take_features("s", 0, 5, features_of(5, 1))
    ((serial, children),) = drafter.grow(ask((11,), (11, 5, 0), told=(5, 0)), 2)
    assert (head.forwards[5:], head.outputs, serial) == ([1], 7, 11)
    assert same(children, expected(head, [*PROMPT, 1, 0], 6))


def test_a_step_that_is_broken_off_leaves_out_the_lm_head_alone() -> None:
    whole, stopped = (opened(SmallHead()) for _ in range(2))
    first = chain_request([3, 4, 5])
    later = GrowTree("s", 0, (3, 4), DraftTokens((3, 4), (2, 2), (6, 7)), 2)
    for drafter in (whole, stopped):
        drafter.take_features("s", 0, 0, features_of(0, 2))
    whole.grow(first, WIDTH)
    with pytest.raises(Unwanted):
        stopped.grow(first, WIDTH, lambda: False)
    assert stopped.grow(later, WIDTH) == whole.grow(later, WIDTH) != ()


@pytest.mark.parametrize("accepted_first", [True, False])
def test_a_guess_is_made_anew_when_the_row_above_it_was_even_if_that_is_accepted_now(accepted_first: bool) -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    drafter.grow(ask((5, 6, 7), (5, 4, 1), (6, 5, 2), (7, 6, 3)), 2)
    drafter.take_features("s", 0, 4, features_of(4, 1))
    drafter.grow(ask((7,) if accepted_first else (5,), told=(5, 2) if accepted_first else (4, 1)), 2)
    assert head.forwards == [4, 1, 1, 1, 1]
    ((_, children),) = drafter.grow(ask((6,), told=(5, 2)), 2)
    assert head.forwards[5:] == [1]
    assert same(children, expected(head, [*PROMPT, 1, 2], 5))


def test_features_reach_one_level_with_each_step_that_asks_and_no_step_is_longer_for_them() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    drafter.grow(ask((5, 6, 7), (5, 4, 1), (6, 5, 2), (7, 6, 3)), 2)
    drafter.take_features("s", 0, 4, features_of(4, 1))
    wanted = {5: [1], 6: [1, 2], 7: [1, 2, 3]}
    del head.forwards[:]
    found = dict(drafter.grow(ask((5, 6, 7), told=(4, 1)), 2))
    assert [same(found[serial], expected(head, [*PROMPT, *path], 5)) for serial, path in wanted.items()] == [1, 0, 0]
    found = dict(drafter.grow(ask((5, 6, 7)), 2))
    assert [same(found[serial], expected(head, [*PROMPT, *path], 5)) for serial, path in wanted.items()] == [1, 1, 0]
    found = dict(drafter.grow(ask((5, 6, 7)), 2))
    assert all(same(found[serial], expected(head, [*PROMPT, *path], 5)) for serial, path in wanted.items())
    assert len(head.forwards) == 3
    drafter.grow(ask((5, 6, 7)), 2)
    assert len(head.forwards) == 3


def test_accepted_tokens_are_read_together_once_their_features_are_there() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    drafter.grow(ask((4,)), 3)
    drafter.take_features("s", 0, 4, features_of(4, 7))
    owed = [(serial, serial - 1, serial % VOCABULARY) for serial in range(5, 12)]
    ((serial, children),) = drafter.grow(ask((11,), *owed, told=(4, 5)), 2)
    assert (serial, head.forwards) == (11, [4, 7])
    assert same(children, expected(head, [*PROMPT, *(token for _, _, token in owed)], 11))


def test_a_prompt_is_read_while_its_features_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_rows, "PREFILL_TOKENS", 24)
    head = SmallHead()
    prompt = [(index * 7) % VOCABULARY for index in range(100)]
    drafter = opened(head)
    drafter.take_features("s", 0, 0, features_of(0, 5))
    assert drafter.grow(chain_request(prompt), 2) == ()
    assert head.forwards == [5]
    drafter.take_features("s", 0, 5, features_of(5, EARLY - 1))
    assert head.forwards == [5]
    drafter.take_features("s", 0, 5, features_of(5, 60))
    assert head.forwards == [5, 24, 24, 12]
    drafter.take_features("s", 0, 65, features_of(65, 34))
    assert head.forwards == [5, 24, 24, 12, 24, 10]
    ((_, children),) = drafter.grow(GrowTree("s", 0, (99,), DraftTokens(), 99), 2)
    assert (head.forwards[6:], head.projected) == ([], 99)
    assert same(children, expected(head, prompt, 99))


def test_a_prompt_of_one_token_begins_with_the_token_after_it() -> None:
    head = SmallHead()
    drafter = opened(head)
    assert drafter.grow(chain_request([3]), 2) == ()
    request = GrowTree("s", 0, (1,), DraftTokens((1,), (0,), (8,)), 0, 0, 8)
    assert drafter.grow(request, 2) == ()
    drafter.take_features("s", 0, 0, features_of(0, 1))
    ((serial, children),) = drafter.grow(GrowTree("s", 0, (1,), DraftTokens(), 0, 0, 8), 2)
    assert serial == 1
    assert same(children, expected(head, [3, 8], 1))
    ((_, children),) = drafter.grow(GrowTree("s", 0, (2,), DraftTokens((2,), (1,), (6,)), 0, 1, 6), 2)
    assert same(children, expected(head, [3, 8, 6], 1))


def test_more_guesses_above_one_another_than_a_step_reads_wait_for_their_features() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    guesses = [(serial, serial - 1, serial % VOCABULARY) for serial in range(5, 5 + DEEPEST + 1)]
    last = guesses[-1][0]
    found = drafter.grow(ask((4, last - 1, last), *guesses), 2)
    assert [serial for serial, _ in found] == [4, last - 1]
    assert len(head.forwards) == 1 + DEEPEST
    found = drafter.grow(ask((last,)), 2)
    assert [serial for serial, _ in found] == [last]
    assert same(found[0][1], expected(head, [*PROMPT, *(token for _, _, token in guesses)], 4))


def test_requests_that_mean_nothing_change_nothing() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    first = drafter.grow(ask((4,)), 2)
    rows = drafter._sessions["s"].rows
    drafter.take_features("unknown", 0, 0, features_of(0, 4))
    drafter.take_features("s", -1, 4, features_of(4, 4))
    drafter.take_features("s", 0, 6, features_of(6, 4))
    drafter.take_features("s", 0, -1, features_of(4, 4))
    drafter.take_features("s", 0, 1, features_of(6, 3))
    drafter.take_features("s", 0, 4, features_of(4, 0))
    assert (rows.states.end, head.projected) == (4, 4)
    assert drafter.grow(GrowTree("unknown", 0, (4,), DraftTokens(), 4), 2) == ()
    assert drafter.grow(GrowTree("s", -1, (4,), DraftTokens(), 4), 2) == ()
    # Dead parents, tokens of the prompt again, tokens given twice, serials that never were, no expansion at all.
    strange = [(2, 1, 1), (20, 19, 1), (21, 20, 1), (22, 3, 1), (30, 4, 6), (30, 4, 6)]
    assert drafter.grow(ask((0, 2, 20, 21, 22, 77), *strange), 2) == ()
    assert drafter.grow(ask(()), 2) == ()
    assert (rows.cache.rows, rows.waiting) == (4, 1)
    assert drafter.grow(ask((4,)), 2) == first
    drafter.close("s")
    drafter.close("s")
    drafter.take_features("s", 0, 4, features_of(4, 1))
    assert drafter.grow(ask((4,)), 2) == ()
    assert drafter._sessions == {}


def test_tokens_that_hang_on_the_middle_of_a_prompt_are_dead_whether_it_was_read_or_not() -> None:
    head = SmallHead()
    drafter = opened(head)
    strange = [(20, 3, 1), (21, 0, 1), (22, NO_PARENT, 1), (23, 20, 1)]
    assert drafter.grow(ask((20, 21, 22, 23), *strange), 2) == ()
    drafter.take_features("s", 0, 0, features_of(0, 4))
    assert drafter.grow(ask((20, 21, 22, 23), *strange), 2) == ()
    assert [serial for serial, _ in drafter.grow(chain_request(PROMPT), 2)] == [4]
    assert drafter.grow(ask((20, 21, 22, 23), *strange), 2) == ()
    drafter._sessions["s"].rows.cache.check_integrity()
    assert head.forwards == [4]


def test_a_new_epoch_begins_with_nothing_and_the_older_one_is_over() -> None:
    head = SmallHead()
    drafter = after_prompt(head)
    first = drafter.grow(ask((4,)), 2)
    drafter.take_features("s", 1, 0, features_of(0, 4))
    assert drafter.grow(ask((4,)), 2) == ()
    assert drafter.grow(chain_request(PROMPT, epoch=1), 2) == first
    drafter.open("s", SamplingParameters(), 100)
    assert drafter.grow(chain_request(PROMPT), 2) == ()


def test_a_step_that_fails_half_way_leaves_what_was_there() -> None:
    head = SmallHead(layers=2)
    drafter = after_prompt(head)
    drafter.grow(ask((4,)), 2)
    drafter.grow(ask((5, 6), (5, 4, 1), (6, 5, 2)), 2)
    drafter.take_features("s", 0, 4, features_of(4, 1))
    for layers in (0, 1):
        head.fail_after = layers
        with pytest.raises(RuntimeError, match="the head fails"):
            drafter.grow(ask((5, 6, 7), (7, 6, 3), told=(4, 1)), 2)
        drafter._sessions["s"].rows.cache.check_integrity()
    for _ in range(3):  # until the last row has read what its parent's parent made of the features
        found = dict(drafter.grow(ask((5, 6, 7), (7, 6, 3), told=(4, 1)), 2))
        assert list(found) == [5, 6, 7]
    assert same(found[7], expected(head, [*PROMPT, 1, 2, 3], 5))


def test_a_full_cache_ends_drafting_not_the_request() -> None:
    head = SmallHead()
    drafter = HeadDrafter(head)
    drafter.open("s", SamplingParameters(), 6)
    drafter.grow(chain_request(PROMPT), 2)
    drafter.take_features("s", 0, 0, features_of(0, 4))
    guesses = [(5, 4, 1), (6, 4, 2), (7, 4, 3), (8, 5, 4)]
    assert [serial for serial, _ in drafter.grow(ask((4, 5, 6, 7, 8), *guesses), 2)] == [4, 5, 6]
    drafter.take_features("s", 0, 4, features_of(4, 20))
    assert drafter._sessions["s"].rows.states.end == 6
    assert [serial for serial, _ in drafter.grow(ask((8,), told=(4, 1)), 2)] == [8]


def test_what_is_kept_of_features_is_bounded_by_what_was_not_read() -> None:
    head = SmallHead()
    drafter = opened(head, row_limit=2000)
    prompt = [(index * 5) % VOCABULARY for index in range(600)]
    drafter.take_features("s", 0, 0, features_of(0, 590))
    rows = drafter._sessions["s"].rows
    drafter.grow(chain_request(prompt), 2)
    assert len(rows.states) == 0
    drafter.take_features("s", 0, 590, features_of(590, 9))
    drafter.grow(GrowTree("s", 0, (599,), DraftTokens(), 599), 2)
    for serial in range(600, 900):
        told = (serial - 2, (serial - 1) * 5 % VOCABULARY) if serial > 601 else (None, None)
        draft = DraftTokens((serial,), (serial - 1,), (serial * 5 % VOCABULARY,))
        drafter.take_features("s", 0, serial - 4, features_of(serial - 4, 4))
        assert drafter.grow(GrowTree("s", 0, (serial,), draft, 599, *told), 2)
        assert len(rows.states) <= 4
        assert rows.states.bytes_held <= 64 * head.hidden_size * 8
    assert head.projected == 899
    assert (rows.cache.tree_rows, rows.waiting, len(rows._unsettled)) == (2, 0, 0)


def test_it_says_what_it_is() -> None:
    head = SmallHead()
    drafter = HeadDrafter(head)
    assert (drafter.name, drafter.taps, drafter.weight_bytes) == (head.kind, head.taps, head.weight_bytes)
    assert drafter.layers == head.layer_count
