"""A model cut into blocks is the whole model: for every family, cut, chunk, tree and window."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from flowspec.errors import InvariantViolation, LimitExceeded, ModelError
from flowspec.model import attention
from flowspec.model import cache as cache_module
from flowspec.model.block import LayerBlock
from flowspec.model.cache import BLOCK_ROWS
from flowspec.model.layout import block_bytes
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import DraftTokens
from tests.checkpoints import FAMILIES
from tests.model.conftest import WriteCheckpoint, oracle_logits
from tests.model.running import Blocks, chain

TOLERANCE = 1e-10
LAYERS = 6
PROMPT = [(7 * i) % 300 + 2 for i in range(23)]

CASES: list[Any] = [
    *(pytest.param(family, {}, id=family) for family in FAMILIES),
    *(pytest.param(family, {"tied": True}, id=f"{family}-tied") for family in ("llama", "qwen2", "qwen3")),
    *(
        pytest.param(family, {"sliding_window": 5}, id=f"{family}-window")
        for family in ("qwen2", "qwen3", "mistral", "phi3")
    ),
]


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.dtype == expected.dtype and float((actual - expected).abs().max()) < TOLERANCE


def random_tree(start: int, parent: int, size: int, seed: int) -> DraftTokens:
    """A random tree under `parent`, siblings with different tokens."""
    rng = random.Random(seed)
    serials = tuple(range(start, start + size))
    parents = tuple(rng.choice([parent, *serials[:index]]) for index in range(size))
    return DraftTokens(serials, parents, tuple((11 * serial) % 307 + 3 for serial in serials))


def path_of(draft: DraftTokens, index: int) -> list[int]:
    """Token ids from the root of the tree down to the token at `index`."""
    path = [draft.tokens[index]]
    while draft.parents[index] in draft.serials:
        index = draft.serials.index(draft.parents[index])
        path.insert(0, draft.tokens[index])
    return path


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_blocks_give_the_logits_of_the_whole_model_for_any_number_of_stages(
    checkpoint: WriteCheckpoint, family: str, settings: dict[str, Any]
) -> None:
    path = checkpoint(family, layers=LAYERS, **settings)
    expected = oracle_logits(path, PROMPT)
    for cuts in [(0, 6), (0, 2, 6), (0, 1, 5, 6), (0, 2, 3, 4, 6), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4, 5, 6)]:
        assert close(Blocks(path, cuts).run_chain(PROMPT), expected), cuts


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_a_later_chunk_of_several_tokens_is_right_at_every_stage(
    checkpoint: WriteCheckpoint, family: str, settings: dict[str, Any]
) -> None:
    path = checkpoint(family, layers=LAYERS, **settings)
    expected = oracle_logits(path, PROMPT)
    for chunk in (1, 3, 8):
        assert close(Blocks(path, (0, 2, 6)).run_chain(PROMPT, chunk), expected), chunk


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_every_path_of_a_tree_gives_what_it_gives_alone(
    checkpoint: WriteCheckpoint, family: str, settings: dict[str, Any]
) -> None:
    path = checkpoint(family, layers=LAYERS, **settings)
    blocks = Blocks(path, (0, 2, 6))
    blocks.run_chain(PROMPT)
    draft = random_tree(len(PROMPT), len(PROMPT) - 1, 14, seed=1)
    # In two segments, so that the second has ancestors both in the cache and beside it.
    logits = torch.cat([blocks.run(draft.select(list(range(6)))), blocks.run(draft.select(list(range(6, 14))))])
    alone = Blocks(path, (0, 6))
    for index in (0, 5, 9, 13):
        tokens = PROMPT + path_of(draft, index)
        assert close(logits[index], alone.fresh().run_chain(tokens)[-1]), index


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {"sliding_window": 5}) for family in ("llama", "olmo2", "mistral", "phi3")),
        *((family, {"sliding_window": 5, "use_sliding_window": False}) for family in ("qwen2", "qwen3", "qwen3-moe")),
        *((family, {"sliding_window": 5, "use_sliding_window": True}) for family in ("qwen2", "qwen3", "qwen3-moe")),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}),
        ("mistral", {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("phi3", {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("llama", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3}),
    ],
)
def test_a_window_in_the_config_means_what_it_means_to_transformers(
    checkpoint: WriteCheckpoint, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    shutil.copytree(checkpoint(family), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps({**config, **settings}))
    assert close(Blocks(tmp_path, (0, 1, 3)).run_chain(PROMPT, 8), oracle_logits(tmp_path, PROMPT))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_rows", [4, BLOCK_ROWS], ids=lambda rows: f"{rows} rows at once")
@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), *((family, {"sliding_window": 5}) for family in ("qwen3", "mistral", "phi3"))],
)
def test_pruning_by_index_leaves_the_results_of_what_lives_unchanged(
    checkpoint: WriteCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    settings: dict[str, Any],
    block_rows: int,
    seed: int,
) -> None:
    monkeypatch.setattr(cache_module, "BLOCK_ROWS", block_rows)
    path = checkpoint(family, layers=LAYERS, **settings)
    blocks, whole = Blocks(path, (0, 2, 6)), Blocks(path, (0, 6))
    blocks.run_chain(PROMPT, chunk=9)
    rng = random.Random(seed)
    serial, accepted = len(PROMPT), list(PROMPT)
    for round_number in range(5):
        last = blocks.caches[0].last_accepted
        assert last is not None
        known = [last, *(blocks.caches[0].serial_of(r) for r in range(len(accepted), blocks.caches[0].rows))]
        parent = rng.choice(known[1:] or known)
        draft = random_tree(serial, parent, 9, seed * 100 + round_number)
        following = blocks.caches[0].next_token
        if parent == last and following is not None:
            draft = DraftTokens(draft.serials, draft.parents, (following, *draft.tokens[1:]))
        serial += 9
        admitted = draft.select(blocks.caches[0].admit(draft))
        logits = blocks.run(admitted)
        cache = blocks.caches[0]
        for index, number in list(enumerate(admitted.serials))[::3]:
            row = cache.find(number)
            assert row is not None
            alone = whole.fresh().run_chain([*accepted, *cache.path_tokens(row)])
            assert close(logits[index], alone[-1])
        tree = range(cache.prefix, cache.rows)
        frontier = rng.choice(tree)
        children = [row for row in tree if cache.child_of(frontier, cache.token_of(row)) == row]
        token = cache.token_of(rng.choice(children)) if children else 1
        joined = list(cache.path_tokens(frontier))
        for pruned in blocks.prune(cache.serial_of(frontier), token):
            assert pruned is not None
            assert list(pruned.accepted_tokens) == joined
        accepted += joined
    assert accepted != PROMPT


def test_greedy_decoding_over_stages_gives_the_tokens_of_generate(checkpoint: WriteCheckpoint) -> None:
    path = checkpoint("mistral", layers=LAYERS, sliding_window=5)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
    )[0].tolist()
    blocks = Blocks(path, (0, 1, 4, 6))
    logits, tokens = blocks.run_chain(PROMPT), list(PROMPT)
    for _ in range(20):
        tokens.append(int(logits[-1].argmax()))
        logits = blocks.run(chain(tokens[-1:], len(tokens) - 1), decree=len(tokens))
    assert tokens == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lower_precision_stays_near_and_its_head_in_float32(
    checkpoint: WriteCheckpoint, family: str, dtype: str
) -> None:
    path = checkpoint(family, layers=LAYERS)
    blocks = Blocks(path, (0, 2, 6), dtype=dtype)
    logits = blocks.run_chain(PROMPT)
    expected = oracle_logits(path, PROMPT)
    assert logits.dtype == torch.float32
    assert blocks.blocks[0].dtype == getattr(torch, dtype)
    correlation = torch.corrcoef(torch.stack([logits.double().flatten(), expected.flatten()]))[0, 1]
    assert correlation > (0.99999 if dtype == "float32" else 0.98)


def test_an_abandoned_forward_returns_none_and_leaves_no_rows(checkpoint: WriteCheckpoint) -> None:
    path = checkpoint("llama", layers=LAYERS)
    blocks = Blocks(path, (0, 6))
    blocks.run_chain(PROMPT)
    cache, block = blocks.caches[0], blocks.blocks[0]
    last = len(PROMPT) - 1
    asked = []

    def alive() -> bool:
        asked.append(True)
        cache.note(last, 250)
        return cache.alive()

    batch = cache.begin(chain([5, 6], last + 1))
    assert block.forward(torch.tensor([5, 6]), cache, batch, alive) is None
    assert len(asked) == 1
    cache.abort()
    assert cache.rows == len(PROMPT)
    cache.prune()
    logits = blocks.run(chain([250, 8], last + 5, last))
    assert close(logits, oracle_logits(path, [*PROMPT, 250, 8])[-2:])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3-moe", "phi3"])
def test_what_a_stage_will_hold_is_known_before_it_is_loaded(
    checkpoint: WriteCheckpoint, family: str, dtype: str, tied: bool
) -> None:
    path = checkpoint(family, tied=tied)
    for first, end in [(0, 3), (0, 1), (1, 2), (2, 3)]:
        expected = block_bytes(Checkpoint(path), first, end, dtype)
        block = LayerBlock.load(path, first, end, dtype=dtype)
        cache = block.new_cache(10)
        cache.begin(chain([1, 2, 3]))
        assert (block.weight_bytes, block.row_bytes) == (expected.weights, expected.row)
        assert cache.bytes_held == 10 * block.row_bytes
        cache.free()
        assert cache.bytes_held == 0


def test_a_block_tells_what_it_is(checkpoint: WriteCheckpoint) -> None:
    path = checkpoint("llama", layers=LAYERS)
    first, middle, tail = Blocks(path, (0, 2, 4, 6)).blocks
    assert [block.is_first for block in (first, middle, tail)] == [True, False, False]
    assert [block.is_tail for block in (first, middle, tail)] == [False, False, True]
    assert (middle.first_layer, middle.end_layer) == (2, 4)
    assert (middle.hidden_size, middle.vocab_size, middle.context_limit) == (32, 352, 512)
    with pytest.raises(ModelError, match="LM head"):
        middle.logits(torch.zeros(1, 32))
    with pytest.raises(ModelError, match=r"6 layers, a stage cannot hold \[4, 7\)"):
        LayerBlock.load(path, 4, 7)


def test_loading_reports_its_progress_up_to_all_bytes(checkpoint: WriteCheckpoint) -> None:
    seen: list[tuple[int, int]] = []
    LayerBlock.load(checkpoint("llama"), 0, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(done <= total for done, total in seen)
    assert max(done for done, _ in seen) == seen[0][1]


def test_a_cache_refuses_more_rows_than_its_session_was_admitted_with(checkpoint: WriteCheckpoint) -> None:
    blocks = Blocks(checkpoint("llama"), (0, 3), row_limit=30)
    blocks.run_chain(PROMPT)
    cache = blocks.caches[0]
    with pytest.raises(LimitExceeded, match="is 30, the request asks for 31"):
        cache.begin(chain([1] * 8, len(PROMPT)))
    assert cache.open_batch is None
    blocks.run(chain([1] * 7, len(PROMPT)))
    cache.free()
    with pytest.raises(InvariantViolation):
        cache.begin(chain([1]))


def test_a_cache_that_grows_many_times_keeps_its_rows(checkpoint: WriteCheckpoint) -> None:
    path = checkpoint("llama", context=700)
    tokens = [(5 * i) % 300 + 2 for i in range(600)]
    blocks = Blocks(path, (0, 3), row_limit=600)
    assert close(blocks.run_chain(tokens, chunk=100), oracle_logits(path, tokens))


@pytest.mark.parametrize("family", ["qwen3", "mistral", "phi3"])
def test_a_layer_with_a_window_gets_and_keeps_only_the_rows_of_its_window(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    window, chunk, length = 20, 30, 900
    path = checkpoint(family, layers=LAYERS, context=1000, sliding_window=window)
    blocks = Blocks(path, (0, LAYERS), row_limit=length + 10)
    (block,), (cache,) = blocks.blocks, blocks.caches
    windowed = [layer is not None for layer in block._windows]
    attended: list[int] = []
    attend = functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        attended.append(key.shape[2])
        return attend(query, key, *given, **named)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", watched)
    tokens = [(5 * i) % 300 + 2 for i in range(length)]
    logits = blocks.run_chain(tokens, chunk)
    assert attended[-LAYERS:] == [window - 1 + chunk if cut else length for cut in windowed]
    later = blocks.run(chain([7, 8], length))
    assert attended[-LAYERS:] == [window - 1 + 2 if cut else length + 2 for cut in windowed]
    assert cache.bytes_held <= sum(
        (window + chunk + BLOCK_ROWS if cut else length + 10) * block.row_bytes // LAYERS for cut in windowed
    )
    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", attend)
    assert close(torch.cat((logits, later)), oracle_logits(path, [*tokens, 7, 8]))
