"""Every policy, with options of every kind, writes what the model alone would have written, in float64."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowspec.errors import ConfigurationError, RequestError
from flowspec.roles import coordinator as coordinator_module
from flowspec.schedule.policies import POLICIES
from flowspec.transport.memory import Faults, MemoryTransport
from tests.pipeline.running import alone, complete, pipeline
from tests.pipeline.test_bad_drafters import Failing, Nonsense, Stalling
from tests.pipeline.test_exactness import PROMPT, SAMPLED, model_of
from tests.pipeline.test_heads import head_of

SMALL = {"tree": 9, "top_k": 3, "depth": 3}
TOKENS = 12
"""Several rounds of every policy, some of them won and some lost."""
WAYS: list[tuple[str, dict[str, bool | int]]] = [
    *((policy, {}) for policy in POLICIES),
    ("flowspec", {"prune": False}),
    ("flowspec", {"expansion": False, "score_order": False, "width": 2}),
    ("chunked", {**SMALL, "chunks": 4}),
    ("pruned", SMALL),
    ("pipedec", {"layer": 3, "top_k": 2}),
    ("lockstep", {"prune": False, "score_order": False, **SMALL, "segment": 4}),
    ("lockstep", {"expansion": False, **SMALL}),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def model(checkpoints: Path) -> Path:
    return model_of(checkpoints, "llama", False, None)


@pytest.fixture(scope="module")
def draft(checkpoints: Path) -> Path:
    """Another model: some of its guesses are right."""
    return model_of(checkpoints, "llama", True, None, layers=1)


@pytest.mark.parametrize(
    ("stages", "right"), [(1, True), (4, True), (4, False)], ids=["one stage", "good drafts", "bad drafts"]
)
async def test_every_policy_writes_what_the_model_writes(model: Path, draft: Path, stages: int, right: bool) -> None:
    expected = alone(model, PROMPT, TOKENS)
    drafter = {"kind": "causal-lm", "model": str(model if right else draft)}
    async with pipeline(model, stages, drafter=drafter) as running:
        plain = await complete(running, PROMPT, "autoregressive", max_new_tokens=TOKENS, **SAMPLED)
        for policy, options in WAYS:
            greedy = await complete(running, PROMPT, policy, policy_options=options, max_new_tokens=TOKENS)
            assert list(greedy.token_ids) == expected, (policy, options)
            # These wait for the whole tree, however long it takes; others send the root alone rather than wait.
            waits = policy in ("chunked", "pruned", "lockstep")
            assert greedy.stats is not None
            assert greedy.stats.accepted > 0 or not (waits and right), (policy, options)
            sampled = await complete(running, PROMPT, policy, policy_options=options, max_new_tokens=TOKENS, **SAMPLED)
            assert sampled.token_ids == plain.token_ids, (policy, options)


@pytest.mark.parametrize("kind", ["ngram", "none"])
async def test_every_policy_does_without_drafts_and_in_a_tiny_context(checkpoints: Path, kind: str) -> None:
    model = model_of(checkpoints, "qwen3", False, 8, context=24)
    most_of_all = 24 - len(PROMPT)
    expected = alone(model, PROMPT, most_of_all)
    async with pipeline(model, 3, drafter=kind) as running:
        for policy, options in WAYS:
            for most in (1, 2, most_of_all):
                result = await complete(running, PROMPT, policy, policy_options=options, max_new_tokens=most)
                assert list(result.token_ids) == expected[:most], (policy, options)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(dropped=1.0), id="all-lost"),
        pytest.param(Faults(dropped=0.4, doubled=0.3), id="lost-and-doubled"),
        pytest.param(Faults(doubled=0.3, delayed=0.5, reordered=0.5), id="doubled-late-and-reordered"),
    ],
)
async def test_broadcasts_decide_no_token_of_any_policy(model: Path, draft: Path, faults: Faults) -> None:
    expected = alone(model, PROMPT, TOKENS)
    transport = MemoryTransport(seed=5)
    async with pipeline(model, 4, transport=transport, drafter={"kind": "causal-lm", "model": str(draft)}) as running:
        transport.faults = faults
        for policy, options in WAYS:
            result = await complete(running, PROMPT, policy, policy_options=options, max_new_tokens=TOKENS)
            assert list(result.token_ids) == expected, (policy, options)
        transport.faults = Faults()


async def test_sessions_of_all_policies_share_the_pipe(model: Path) -> None:
    expected = alone(model, PROMPT, TOKENS)
    async with pipeline(
        model, 3, drafter={"kind": "causal-lm", "model": str(model)}, limits={"sessions": len(WAYS)}
    ) as running:
        found = await asyncio.gather(
            *(complete(running, PROMPT, p, policy_options=options, max_new_tokens=TOKENS) for p, options in WAYS)
        )
    for (policy, options), result in zip(WAYS, found, strict=True):
        assert list(result.token_ids) == expected, (policy, options)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "autoregressive"])
@pytest.mark.parametrize("kind", [Nonsense, Failing, Stalling])
async def test_bad_drafters_cost_no_token_of_any_policy(
    monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[Nonsense], policy: str
) -> None:
    drafter = kind()
    monkeypatch.setattr(coordinator_module, "build_drafter", lambda *_: drafter)
    async with pipeline(model, 3, timeouts={"progress": 0.5} if kind is Stalling else {}) as running:
        try:
            assert list((await complete(running, PROMPT, policy)).token_ids) == alone(model, PROMPT, 24)
        finally:
            if isinstance(drafter, Stalling):
                drafter.released.set()


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
async def test_a_head_changes_no_token_of_any_policy(checkpoints: Path, model: Path, kind: str) -> None:
    expected = alone(model, PROMPT, TOKENS)
    drafter = {"kind": kind, "model": str(head_of(checkpoints, model, kind))}
    async with pipeline(model, 3, drafter=drafter) as running:
        for policy, options in WAYS:
            result = await complete(running, PROMPT, policy, policy_options=options, max_new_tokens=TOKENS)
            assert list(result.token_ids) == expected, (policy, options)
            assert result.stats is not None
            assert result.stats.drafted > 0 or policy not in ("chunked", "pruned", "lockstep"), (policy, options)


async def test_options_are_checked_where_they_are_known(model: Path) -> None:
    async with pipeline(model, 2, drafter="ngram", policy="chunked", policy_options={"tree": 12}) as running:
        assert list((await complete(running, PROMPT, "chunked")).token_ids) == alone(model, PROMPT, 24)
        with pytest.raises(RequestError, match=r"no option 'chunks'(?s:.*)tree \(2 to 256; \d+\), segment"):
            await complete(running, PROMPT, "flowspec", policy_options={"chunks": 3})
        with pytest.raises(RequestError, match="the option tree of the policy pruned cannot be '0'"):
            await complete(running, PROMPT, "pruned", policy_options={"tree": 0})
        with pytest.raises(RequestError, match="the option prune of the policy lockstep cannot be 'maybe'"):
            await complete(running, PROMPT, "lockstep", policy_options={"prune": "maybe"})


async def test_a_coordinator_refuses_a_topology_with_options_that_its_policy_has_not(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="in the topology: the policy pipedec has no option"):
        async with pipeline(model, 2, drafter="ngram", policy="pipedec", policy_options={"tree": 12}):
            pass
