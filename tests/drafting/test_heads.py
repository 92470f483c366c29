"""Heads compute what their definitions say: against a plain forward pass that shares no code with them (float64)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowspec.drafting.head import DraftHead
from flowspec.drafting.head_files import load_head
from flowspec.model.cache import TreeCache
from flowspec.model.weights import Checkpoint
from flowspec.wire.messages import FINAL, NO_PARENT, DraftTokens
from tests.checkpoints import write_checkpoint
from tests.drafting import head_folders as folders
from tests.drafting.plain_heads import Plain

CLOSE = 1e-10


@dataclass(frozen=True)
class Case:
    """A head's folder, and the same head by its definition."""

    config: dict[str, Any]
    shapes: folders.Shapes
    plain: dict[str, Any]
    prefix: str = ""
    sidecar: dict[str, Any] | None = None
    draft_vocabulary: bool = True


def nested(**changes: Any) -> dict[str, Any]:
    """The decoder of speculators, changed."""
    return folders.SPECULATORS | {"transformer_layer_config": folders.SPECULATORS["transformer_layer_config"] | changes}


def with_norms(shapes: folders.Shapes, prefix: str, head_dim: int) -> folders.Shapes:
    return shapes | {f"{prefix}self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}


SECOND = folders.layer_shapes("layers.1.", width=folders.HIDDEN, norms=("input_layernorm",))
FC_NORMS: folders.Shapes = {f"fc_norm.{index}.weight": (folders.HIDDEN,) for index in range(3)}
DEEP = "layers.0."

CASES: dict[str, Case] = {
    "eagle": Case(folders.EAGLE, folders.eagle_shapes(), {}),
    "eagle with the target's embedding": Case(folders.EAGLE, folders.eagle_shapes(embedding=False), {}),
    "eagle without bias": Case(folders.EAGLE | {"bias": False}, folders.eagle_shapes(fc_bias=False), {}),
    "eagle for qwen2": Case(folders.EAGLE | {"qkv_bias": True}, folders.eagle_shapes(bias=True), {}),
    "eagle of two layers, model. in front": Case(
        folders.EAGLE | {"num_hidden_layers": 2, "rope_theta": 500.0},
        folders.eagle_shapes() | SECOND,
        {"layers": ("layers.0.", "layers.1."), "theta": 500.0},
        prefix="model.",
    ),
    "eagle3": Case(folders.EAGLE3, folders.eagle3_shapes(), {}),
    "eagle3 with the whole vocabulary": Case(
        folders.EAGLE3 | {"draft_vocab_size": folders.VOCABULARY},
        folders.eagle3_shapes(draft_vocabulary=folders.VOCABULARY),
        {},
        draft_vocabulary=False,
    ),
    "eagle3 with a head_dim and scaled rope": Case(
        folders.EAGLE3 | {"head_dim": 16, "rope_theta": 3000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        folders.eagle3_shapes(head_dim=16),
        {"head_dim": 16, "theta": 3000.0, "linear": 2.0},
    ),
    "specforge": Case(
        # Both spellings of RoPE at once, an architecture of its own, no embedding; a config copied from the target's.
        folders.EAGLE3
        | {"rope_theta": 700.0, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
        | {"num_hidden_layers": 28, "norm_output": False, "attention_bias": False},
        folders.eagle3_shapes(),
        {"theta": 700.0},
    ),
    "eagle 3.1": Case(
        folders.EAGLE3 | {"fc_norm": True, "norm_output": True},
        folders.eagle3_shapes() | FC_NORMS,
        {"normed_output": True},
    ),
    "eagle3 with biases": Case(
        folders.EAGLE3 | {"attention_bias": True},
        folders.eagle3_shapes(bias=True) | {"midlayer.self_attn.o_proj.bias": (folders.HIDDEN,)},
        {},
    ),
    "eagle3 narrower than its target": Case(
        folders.EAGLE3 | {"hidden_size": 16, "target_hidden_size": folders.HIDDEN, "head_dim": 8},
        folders.eagle3_shapes(hidden=16, target_hidden=folders.HIDDEN)
        | {"embed_tokens.weight": (folders.VOCABULARY, 16)},
        {},
    ),
    "speculators": Case(folders.SPECULATORS, folders.eagle3_shapes(DEEP), {"normed_residual": True}),
    "speculators with qwen3 and an embedding": Case(
        nested(model_type="qwen3", head_dim=16) | {"norm_before_residual": False},
        with_norms(folders.eagle3_shapes(DEEP, head_dim=16), DEEP, 16)
        | {"embed_tokens.weight": (folders.VOCABULARY, folders.HIDDEN)},
        {"head_dim": 16},
    ),
    "speculators with input_norm": Case(
        folders.SPECULATORS | {"norm_before_fc": True},
        folders.eagle3_shapes(DEEP) | {"input_norm.weight": (3 * folders.HIDDEN,)},
        {"normed_residual": True},
    ),
    "speculators with three layers and all norms": Case(
        nested(num_hidden_layers=3) | {"fc_norm": True, "norm_output": True},
        folders.eagle3_shapes(DEEP)
        | FC_NORMS
        | SECOND
        | folders.layer_shapes("layers.2.", width=folders.HIDDEN, norms=("input_layernorm",)),
        {"normed_residual": True, "normed_output": True, "layers": ("layers.0.", "layers.1.", "layers.2.")},
    ),
    "a convention said beside it": Case(
        folders.EAGLE3, folders.eagle3_shapes(), {"normed_residual": True}, sidecar={"norm_before_residual": True}
    ),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("target"), tokenizer=False))


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def both(request: pytest.FixtureRequest, target: Checkpoint, tmp_path: Path) -> tuple[DraftHead, Plain]:
    case = CASES[request.param]
    kind = "eagle" if "draft_vocab_size" not in case.config else "eagle3"
    tensors = folders.random_tensors(case.shapes)
    maps = {}
    if kind == "eagle3" and case.draft_vocabulary:
        maps = folders.vocabulary_maps(folders.draft_tokens())
    folders.write_head(tmp_path, case.config, tensors | maps, prefix=case.prefix, sidecar=case.sidecar)
    head = load_head(tmp_path, target, kind=kind, dtype="float64")
    of_target = load_file(target.path / "model.safetensors")
    settings: dict[str, Any] = {
        "heads": folders.HEADS,
        "kv_heads": folders.KV_HEADS,
        "head_dim": folders.HIDDEN // folders.HEADS,
        "eps": 1e-5,
        "layers": ("midlayer.",) if "midlayer.mlp.up_proj.weight" in case.shapes else ("layers.0.",),
        "taps": 3 if kind == "eagle3" else 1,
    } | case.plain
    plain = Plain(
        tensors,
        tensors.get("embed_tokens.weight", of_target["model.embed_tokens.weight"]),
        tensors["lm_head.weight"] if kind == "eagle3" else of_target["lm_head.weight"],
        kind,
        **settings,
    )
    return head, plain


class Tree:
    """Rows of a head, grown batch by batch in a cache, and what the plain head says of each of them."""

    def __init__(self, head: DraftHead, plain: Plain, row_limit: int = 64) -> None:
        head.settle()
        self.head, self.plain = head, plain
        self.cache: TreeCache = head.new_cache(row_limit)
        self.tokens: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.states: dict[int, torch.Tensor] = {}  # taken
        self.outputs: dict[int, torch.Tensor] = {}  # of the head
        self.expected: dict[int, torch.Tensor] = {}

    def path(self, serial: int) -> list[int]:
        found = [serial]
        while self.parents[found[-1]] != NO_PARENT:
            found.append(self.parents[found[-1]])
        return found[::-1]

    def grow(self, rows: list[tuple[int, int, int]], features: torch.Tensor | None = None, *, decree: int = -1) -> None:
        """Rows (serial, parent, token); their states come from features, or else from the parents' outputs."""
        serials, parents, tokens = (tuple(column) for column in zip(*rows, strict=True))
        if features is not None:
            states = self.head.project(features)
            plain = [self.plain.project(row) for row in features]
        else:
            states = torch.stack([self.outputs[parent] for parent in parents])
            plain = [self.expected[parent] for parent in parents]
        batch = self.cache.begin(DraftTokens(serials, parents, tokens))
        outputs = self.head(self.head.embed(torch.tensor(tokens)), states, self.cache, batch)
        self.cache.commit(decree)
        for index, (serial, parent, token) in enumerate(rows):
            self.tokens[serial], self.parents[serial] = token, parent
            self.states[serial], self.outputs[serial] = plain[index], outputs[index]
        for serial in serials:
            path = self.path(serial)
            self.expected[serial] = self.plain.step([self.tokens[i] for i in path], [self.states[i] for i in path])

    def check(self) -> None:
        for serial, expected in self.expected.items():
            torch.testing.assert_close(self.outputs[serial], expected, rtol=0, atol=CLOSE)
            logits = self.head.output(self.outputs[serial])
            torch.testing.assert_close(logits, self.plain.logits(expected), rtol=0, atol=CLOSE)


@torch.inference_mode()
def test_a_sequence_and_a_tree_behind_it_are_as_defined(both: tuple[DraftHead, Plain]) -> None:
    head, plain = both
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(7, head.feature_size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 352, (40,), generator=generator).tolist()
    tree = Tree(head, plain)
    tree.grow([(i, i - 1 if i else NO_PARENT, tokens[i]) for i in range(4)], features[:4], decree=3)
    tree.grow([(4, 3, tokens[4])], features[4:5], decree=4)
    # Three levels: the first takes features, the others their parents' outputs.
    tree.grow([(5, 4, tokens[5]), (6, 4, tokens[6])], features[5:])
    tree.grow([(7, 6, tokens[7]), (8, 5, tokens[8]), (9, 6, tokens[9])])
    tree.grow([(10, 9, tokens[10])])
    tree.check()
    # A verdict: row 6 is accepted and 9 follows; what is left goes on as if the rest had never been.
    tree.cache.note(6, tokens[9])
    assert tree.cache.prune() is not None
    tree.grow([(11, 10, tokens[11]), (12, 9, tokens[12])])
    tree.check()


@torch.inference_mode()
def test_training_sees_the_same_layer(both: tuple[DraftHead, Plain]) -> None:
    """`inputs`, `qkv`, `finish` and `next_states` over a batch of sequences give what `forward` gives for each."""
    head, _ = both
    generator = torch.Generator().manual_seed(3)
    count = 6
    tokens = torch.randint(0, 352, (2, count), generator=generator)
    features = torch.randn(2, count, head.feature_size, generator=generator, dtype=torch.float64)
    embeds, states = head.embed(tokens), head.project(features)
    rope = head.rotary(torch.arange(count))
    hidden = states
    for index, layer in enumerate(head.stack):
        residual, attention_input = layer.enter(hidden) if index else head.inputs(embeds, states)
        query, key, value = layer.qkv(attention_input, rope)
        assert query.shape == (2, head.config.heads, count, head.config.head_dim)
        assert key.shape == value.shape == (2, head.config.kv_heads, count, head.config.head_dim)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        hidden = layer.finish(residual, attended)
    hidden = head.next_states(hidden)
    head.settle()
    for sequence in range(2):
        cache = head.new_cache(count)
        draft = DraftTokens(tuple(range(count)), (NO_PARENT, *range(count - 1)), tuple(tokens[sequence].tolist()))
        output = head(embeds[sequence], states[sequence], cache, cache.begin(draft))
        torch.testing.assert_close(output, hidden[sequence], rtol=0, atol=CLOSE)


def test_taps_and_vocabulary_are_those_of_the_folder(both: tuple[DraftHead, Plain]) -> None:
    head, plain = both
    assert head.kind == plain.kind
    assert head.taps == ((FINAL,) if head.kind == "eagle" else (0, 1, 2))
    assert head.feature_size == len(head.taps) * folders.HIDDEN
    if head.output(torch.zeros(1, head.hidden_size, dtype=torch.float64)).shape[1] == folders.VOCABULARY:
        assert head.target_tokens is None
    else:
        assert head.target_tokens is not None
        assert head.target_tokens.tolist() == folders.draft_tokens().tolist()


def test_no_gradients_and_no_weight_counted_twice(tmp_path: Path) -> None:
    """A tied target's embedding is held once, for looking up and as the LM head."""
    sizes = {}
    for tied in (True, False):
        target = Checkpoint(write_checkpoint(tmp_path / str(tied), tied=tied, tokenizer=False))
        folder = folders.write_head(
            tmp_path / f"head-{tied}", folders.EAGLE, folders.random_tensors(folders.eagle_shapes(embedding=False))
        )
        for dtype in ("float32", "bfloat16"):
            head = load_head(folder, target, dtype=dtype)
            assert not any(parameter.requires_grad for parameter in head.parameters())
            assert head.output(torch.zeros(1, folders.HIDDEN, dtype=head.dtype)).dtype == torch.float32
            sizes[tied, dtype] = head.weight_bytes
    layer = sum(torch.Size(shape).numel() for shape in folders.eagle_shapes(embedding=False).values())
    embedding = folders.VOCABULARY * folders.HIDDEN
    assert sizes[True, "float32"] == 4 * (layer + embedding)
    assert sizes[False, "float32"] == 4 * (layer + 2 * embedding)
    # The LM head is float32 whatever the layers are, so nothing can be shared.
    assert sizes[True, "bfloat16"] == sizes[False, "bfloat16"] == 2 * (layer + embedding) + 4 * embedding


@pytest.mark.parametrize("make", [lambda head: head.to(torch.bfloat16), lambda head: head.float()])
def test_a_cast_head_keeps_exact_angles(
    target: Checkpoint, tmp_path: Path, make: Callable[[DraftHead], DraftHead]
) -> None:
    tensors = folders.random_tensors(folders.eagle_shapes())
    head = load_head(folders.write_head(tmp_path, folders.EAGLE, tensors), target, dtype="float64")
    positions = torch.tensor([0, 1, 300])
    before = head.rotary(positions)
    after = make(head).rotary(positions)
    for exact, cast in zip(before, after, strict=True):
        assert torch.equal(exact.to(cast.dtype), cast)
