"""Every pipeline writes what the model alone would have written, token for token, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowspec.errors import LimitExceeded
from flowspec.model.check import check_generation
from flowspec.transport.memory import Faults, MemoryTransport
from flowspec.wire.parameters import SamplingParameters
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import alone, complete, pipeline

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 17}

MODELS = [
    ("llama", False, None),
    ("llama", True, None),
    ("llama3-rope", False, None),
    ("qwen2", True, None),
    ("qwen2", False, 8),
    ("qwen3", True, None),
    ("qwen3", False, 8),
    ("mistral", False, None),
    ("mistral", True, 8),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def model_of(folder: Path, family: str, tied: bool, window: int | None, *, layers: int = 6, context: int = 512) -> Path:
    path = folder / f"{family}-{tied}-{window}-{layers}-{context}"
    if not path.exists():
        write_checkpoint(path, family, layers=layers, tied=tied, sliding_window=window, context=context)
    return path


def prompt_of(length: int) -> list[int]:
    return [(7 * index + index // 5) % 300 + 2 for index in range(length)]


@pytest.mark.parametrize(("family", "tied", "window"), MODELS)
async def test_every_family_writes_what_transformers_writes(
    checkpoints: Path, family: str, tied: bool, window: int | None
) -> None:
    model = model_of(checkpoints, family, tied, window)
    expected = alone(model, PROMPT, 24)
    async with pipeline(model, 3, drafter={"kind": "causal-lm", "model": str(model)}) as running:
        for policy in ("autoregressive", "flowspec"):
            assert list((await complete(running, PROMPT, policy)).token_ids) == expected, policy
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        fast = await complete(running, PROMPT, "flowspec", **SAMPLED)
        assert fast.token_ids == plain.token_ids
        assert fast.stats.accepted > 0


@pytest.mark.parametrize(("context", "length"), [(None, 5), (400, 5), (400, 150)])
async def test_longrope_models_turn_by_the_factors_that_the_context_asks_for_from_the_first_token_on(
    tmp_path: Path, context: int | None, length: int
) -> None:
    model = write_checkpoint(tmp_path, "llama", layers=4)
    config = json.loads((model / "config.json").read_text())
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    drafter = {"kind": "causal-lm", "model": str(model)}
    streams = []
    async with pipeline(model, 3, drafter=drafter, limits={"context": context} if context else {}) as running:
        for policy in ("autoregressive", "flowspec"):
            streams.append(await complete(running, prompt_of(length), policy, **SAMPLED))
        if context is None:
            with pytest.raises(LimitExceeded, match="is 32, the request asks for 34"):
                await complete(running, prompt_of(10), "flowspec")
    assert streams[0].token_ids == streams[1].token_ids
    sampling = SamplingParameters(**SAMPLED)
    report = check_generation(
        str(model), prompt_of(length), streams[0].token_ids, sampling, dtype="float64", context=context
    )
    assert report.equal == 24
    if length == 5:
        other = None if context else 400
        report = check_generation(
            str(model), prompt_of(5), streams[0].token_ids, sampling, dtype="float64", context=other
        )
        assert report.differences


@pytest.mark.parametrize("stages", [1, 2, 4, 6])
@pytest.mark.parametrize("drafter", ["ngram", "causal-lm", "none"])
async def test_the_number_of_stages_and_the_drafter_change_nothing(
    checkpoints: Path, stages: int, drafter: str
) -> None:
    model = model_of(checkpoints, "llama", False, None)
    other = model_of(checkpoints, "llama", True, None, layers=1)
    choice = {"kind": drafter, "model": str(other)} if drafter == "causal-lm" else drafter
    expected = alone(model, PROMPT, 24)
    async with pipeline(model, stages, drafter=choice) as running:
        assert list((await complete(running, PROMPT, "flowspec")).token_ids) == expected
        plain = await complete(running, PROMPT, "autoregressive", **SAMPLED)
        assert (await complete(running, PROMPT, "flowspec", **SAMPLED)).token_ids == plain.token_ids


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200, 380])
async def test_prompts_of_any_length_are_prefilled_exactly(checkpoints: Path, length: int) -> None:
    model = model_of(checkpoints, "qwen3", False, 8)
    prompt = prompt_of(length)
    expected = alone(model, prompt, 16)
    async with pipeline(model, 3, drafter="ngram") as running:
        for policy in ("autoregressive", "flowspec"):
            result = await complete(running, prompt, policy, max_new_tokens=16)
            assert list(result.token_ids) == expected, policy


@pytest.mark.parametrize(
    ("family", "window"), [("llama", None), ("qwen3", 8), ("mistral", 100)], ids=["full", "layers", "all"]
)
async def test_a_prompt_of_700_tokens_is_prefilled_exactly_with_and_without_windows(
    checkpoints: Path, family: str, window: int | None
) -> None:
    model = model_of(checkpoints, family, True, window, context=1024)
    prompt = prompt_of(700)
    expected = alone(model, prompt, 16)
    async with pipeline(model, 3, drafter={"kind": "causal-lm", "model": str(model)}) as running:
        for policy in ("autoregressive", "flowspec"):
            result = await complete(running, prompt, policy, max_new_tokens=16)
            assert list(result.token_ids) == expected, policy
        plain = await complete(running, prompt, "autoregressive", max_new_tokens=16, **SAMPLED)
        fast = await complete(running, prompt, "flowspec", max_new_tokens=16, **SAMPLED)
        assert fast.token_ids == plain.token_ids


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(dropped=1.0), id="all-lost"),
        pytest.param(Faults(dropped=0.4, doubled=0.3), id="lost-and-doubled"),
        pytest.param(Faults(doubled=0.3, delayed=0.5, reordered=0.5), id="doubled-late-and-reordered"),
    ],
)
async def test_broadcasts_never_decide_a_token(checkpoints: Path, faults: Faults) -> None:
    model = model_of(checkpoints, "llama", False, None)
    draft = model_of(checkpoints, "llama", True, None, layers=1)
    expected = alone(model, PROMPT, 32)
    for seed in range(2):
        transport = MemoryTransport(seed=seed)
        async with pipeline(
            model, 4, transport=transport, drafter={"kind": "causal-lm", "model": str(draft)}
        ) as running:
            transport.faults = faults
            result = await complete(running, PROMPT, "flowspec", max_new_tokens=32)
            transport.faults = Faults()
        assert list(result.token_ids) == expected


async def test_sessions_that_share_the_pipe_do_not_touch_each_other(checkpoints: Path) -> None:
    import asyncio

    model = model_of(checkpoints, "mistral", True, 8)
    prompts = [PROMPT[: 3 + 2 * index] for index in range(5)]
    expected = [alone(model, prompt, 20) for prompt in prompts]
    async with pipeline(model, 3, drafter={"kind": "causal-lm", "model": str(model)}) as running:
        results = await asyncio.gather(
            *(complete(running, prompt, "flowspec", max_new_tokens=20) for prompt in prompts),
            complete(running, PROMPT, "autoregressive", max_new_tokens=20, **SAMPLED),
        )
        assert [list(result.token_ids) for result in results[:-1]] == expected
        again = await complete(running, PROMPT, "flowspec", max_new_tokens=20, **SAMPLED)
        assert again.token_ids == results[-1].token_ids
