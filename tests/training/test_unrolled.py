"""Claims about unrolling: every row of every step is what drafting one token at a time would have computed."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_config import HeadConfig
from flowspec.drafting.head_files import build_head
from flowspec.training.unrolled import unroll
from flowspec.wire.messages import FINAL, NO_PARENT, DraftTokens

LENGTH = 9
STEPS = 4


def head_of(kind: str, **changes: object) -> DraftHead:
    torch.manual_seed(3)
    sizes: dict[str, object] = {
        "kind": kind,
        "hidden_size": 16,
        "target_hidden_size": 16,
        "vocab_size": 50,
        "draft_vocab_size": 50,
        "intermediate_size": 24,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 4,
        "taps": (FINAL,) if kind == "eagle" else (1, 2, 3),
    }
    return build_head(HeadConfig(**{**sizes, **changes})).to(torch.float64)  # type: ignore[arg-type]


@torch.no_grad()
def drafted(head: DraftHead, tokens: torch.Tensor, features: torch.Tensor, base: int, steps: int) -> torch.Tensor:
    """The states of the chain of drafts of `base`, a token at a time under a cache: (steps, hidden)."""
    head = deepcopy(head)
    head.settle()
    cache = head.new_cache(64)

    def forward(first: int, states: torch.Tensor) -> torch.Tensor:
        serials = tuple(range(first, first + len(states)))
        parents = tuple(serial - 1 if serial else NO_PARENT for serial in serials)
        fed = tokens[first + 1 : first + 1 + len(states)]
        batch = cache.begin(DraftTokens(serials, parents, tuple(fed.tolist())))
        output = head(head.embed(fed), states, cache, batch)
        cache.commit(base)
        return output

    states = forward(0, head.project(features[: base + 1]))[-1:]
    found = [states]
    for step in range(1, steps):
        states = forward(base + step, states)
        found.append(states)
    return torch.cat(found)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("eagle", {}),
        ("eagle", {"fc_bias": True, "attention_bias": True, "kv_heads": 4}),
        ("eagle", {"layer_count": 2}),
        ("eagle3", {}),
        ("eagle3", {"layer_count": 2, "qk_norm": True}),
        ("eagle3", {"fc_norm": True, "norm_output": True, "norm_before_residual": True, "norm_before_fc": True}),
    ],
)
@pytest.mark.parametrize("block", [3, 256])
def test_unrolled_rows_are_those_of_drafting_step_by_step(
    monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, object], block: int
) -> None:
    monkeypatch.setattr("flowspec.training.unrolled.BLOCK", block)
    head = head_of(kind, **changes)
    tokens = torch.randint(0, 50, (2, LENGTH))
    features = torch.randn(2, LENGTH, head.feature_size, dtype=torch.float64)
    unrolled = list(unroll(head, tokens, features, STEPS))
    assert [states.size(1) for states in unrolled] == [LENGTH - 1 - step for step in range(STEPS)]
    for window in range(2):
        for base in range(LENGTH - 1):
            steps = min(STEPS, LENGTH - 1 - base)
            expected = drafted(head, tokens[window], features[window], base, steps)
            found = torch.stack([unrolled[step][window, base] for step in range(steps)])
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_a_row_depends_on_no_later_token_and_no_later_state() -> None:
    head = head_of("eagle3")
    tokens = torch.randint(0, 50, (1, LENGTH))
    features = torch.randn(1, LENGTH, head.feature_size, dtype=torch.float64, requires_grad=True)
    for step, states in enumerate(unroll(head, tokens, features, STEPS)):
        for base in range(states.size(1)):
            (slope,) = torch.autograd.grad(states[0, base].sum(), features, retain_graph=True)
            reached = slope[0].abs().sum(-1).nonzero().flatten().tolist()
            assert reached == list(range(base + 1)), f"step {step}, base {base}"


def test_a_window_shorter_than_the_steps_is_refused() -> None:
    head = head_of("eagle")
    with pytest.raises(ValueError, match="too short for 4 steps"):
        list(unroll(head, torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, 16), 4))
