"""What a checkpoint says of itself, what a stage opens of it, and how damage is told."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import torch
from huggingface_hub.utils import SafetensorsFileMetadata, TensorInfo
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flowspec.demo import DRAFT_DIR, MODEL_DIR
from flowspec.errors import ModelError
from flowspec.model import layout
from flowspec.model.block import LayerBlock
from flowspec.model.weights import EMBEDDING, HEAD, Checkpoint, read_header, resolve_model
from tests.checkpoints import FAMILIES, write_tokenizer
from tests.model.conftest import WriteCheckpoint, oracle_logits
from tests.model.running import Blocks

SHARDED: dict[str, Any] = {"layers": 6, "shard_bytes": 60_000}


@pytest.fixture
def damaged(checkpoint: WriteCheckpoint, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint that a test may spoil."""

    def copy(**changes: Any) -> Path:
        folder: Path = tmp_path / "copy"
        shutil.copytree(checkpoint(**changes), folder)
        return folder

    return copy


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_stage_opens_only_the_files_that_hold_its_tensors(
    checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(**SHARDED)
    opened: list[str] = []
    original = safetensors.safe_open

    def watched(file: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(file).name)
        return original(file, *args, **kwargs)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    needed = Checkpoint(path).needed_files(2, 3)
    LayerBlock.load(path, 2, 3)
    assert tuple(opened) == needed
    assert 0 < len(needed) < len(set(Checkpoint(path).files.values()))


def test_a_stage_works_where_only_its_own_files_are(damaged: Callable[..., Path]) -> None:
    path = damaged(**SHARDED)
    whole = Checkpoint(path)
    expected = (whole.fingerprint(), whole.split_layers(3), whole.layer_parameters())
    for file in set(whole.files.values()) - set(whole.needed_files(2, 4)):
        (path / file).unlink()
    part = Checkpoint(path)
    assert LayerBlock.load(path, 2, 4).weight_bytes == layout.block_bytes(part, 2, 4, "float32").weights
    assert (part.fingerprint(), part.split_layers(3), part.layer_parameters()) == expected
    with pytest.raises(ModelError, match="is missing, though the index names it"):
        LayerBlock.load(path, 0, 2)


def test_sharded_and_single_files_give_the_same_model(checkpoint: WriteCheckpoint) -> None:
    single, sharded = checkpoint(layers=6), checkpoint(**SHARDED)
    assert Checkpoint(single).fingerprint() == Checkpoint(sharded).fingerprint()
    assert torch.equal(Blocks(single, (0, 6)).run_chain([1, 2, 3]), Blocks(sharded, (0, 6)).run_chain([1, 2, 3]))


def test_the_fingerprint_follows_the_model_and_not_what_wrote_it(damaged: Callable[..., Path]) -> None:
    path = damaged()
    before = Checkpoint(path).fingerprint()
    edit_config(path, transformers_version="0.0.0", _name_or_path="elsewhere")
    assert Checkpoint(path).fingerprint() == before
    edit_config(path, rms_norm_eps=0.5)
    assert Checkpoint(path).fingerprint() != before


def test_the_tokenizer_hash_follows_the_vocabulary(tmp_path: Path, damaged: Callable[..., Path]) -> None:
    path = damaged()
    assert Checkpoint(path).tokenizer_hash() == ""
    write_tokenizer(path)
    before = Checkpoint(path).tokenizer_hash()
    assert before == Checkpoint(path).tokenizer_hash() != ""
    (path / "tokenizer.json").write_text((path / "tokenizer.json").read_text().replace("the", "teh"))
    assert Checkpoint(path).tokenizer_hash() != before


@pytest.mark.parametrize(("value", "expected"), [(5, {5}), ([5, 6], {5, 6}), (None, {1})])
def test_eos_comes_from_the_generation_config_and_else_from_the_config(
    damaged: Callable[..., Path], value: Any, expected: set[int]
) -> None:
    path = damaged()
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert Checkpoint(path).eos_token_ids == expected
    (path / "generation_config.json").unlink()
    assert Checkpoint(path).eos_token_ids == {1}


@pytest.mark.parametrize("value", ["x", [None], {}, [1, "2"], 1.5])
def test_an_eos_that_is_no_token_id_is_refused(damaged: Callable[..., Path], value: Any) -> None:
    path = damaged()
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ModelError, match=r"eos_token_id is .*, neither a token id nor a list of them"):
        _ = Checkpoint(path).eos_token_ids


def test_a_tensor_of_no_layer_does_not_count(damaged: Callable[..., Path]) -> None:
    path = damaged()
    expected = Checkpoint(path).parameters
    edit_tensors(path, lambda tensors: tensors.update({"model.layers.x.weight": torch.ones(3)}))
    assert Checkpoint(path).parameters == expected
    LayerBlock.load(path, 0, 3)


def spoil(path: Path, how: str) -> str:
    """Damage the checkpoint; returns what the error must name."""
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    match how:
        case "no directory":
            shutil.rmtree(path)
            return "there is no directory"
        case "no config":
            (path / "config.json").unlink()
            return "config.json is missing"
        case "config is not JSON":
            (path / "config.json").write_text("{")
            return "config.json is not valid JSON"
        case "config is a list":
            (path / "config.json").write_text("[]")
            return "does not hold a JSON object"
        case "config of nonsense":
            edit_config(path, num_attention_heads="many")
            return "config.json cannot be read"
        case "unsupported":
            edit_config(path, model_type="mamba")
            return "architecture 'mamba' is not supported"
        case "no weights":
            weights.unlink()
            return "neither model.safetensors nor"
        case "only bin":
            weights.rename(path / "pytorch_model.bin")
            return "has only pytorch_model.bin, no safetensors"
        case "truncated":
            weights.write_bytes(content[:-100])
            return "model.safetensors cannot be read: tensor .* ends after the end of the file"
        case "truncated in the header":
            weights.write_bytes(content[:60])
            return "the header is longer than the file"
        case "empty":
            weights.write_bytes(b"")
            return "model.safetensors cannot be read"
        case "noise":
            weights.write_bytes(b"\x08\0\0\0\0\0\0\0" + b"\xff" * 64)
            return "model.safetensors cannot be read"
        case "missing tensor":
            length = int.from_bytes(content[:8], "little")
            header = content[8 : 8 + length].replace(b"layers.1.mlp.up_proj", b"layers.1.mlp.xp_proj")
            weights.write_bytes(content[:8] + header + content[8 + length :])
            return "1 tensors are missing, the first is model.layers.1.mlp.up_proj.weight"
        case "missing layer":
            edit_config(path, num_hidden_layers=4)
            return "layer 3 of 4 has no tensors|tensors are missing, the first is model.layers.3"
        case "missing norm":
            length = int.from_bytes(content[:8], "little")
            header = content[8 : 8 + length].replace(b"model.norm.weight", b"model.xorm.weight")
            weights.write_bytes(content[:8] + header + content[8 + length :])
            return "the tensor model.norm.weight is missing"
        case "quantised":
            edit_config(path, quantization_config={"quant_method": "gptq", "bits": 4})
            return r"config.json: the weights are quantised \(gptq\), which is not supported"
        case "quantised by a method without a name":
            edit_config(path, compression_config={"format": "pack-quantized"})
            return r"the weights are quantised \(compression_config\)"
        case "scaled weights":
            name = "model.layers.1.mlp.up_proj.weight"
            edit_tensors(path, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
            return f"{name} is stored as F8_E4M3, not as one of F64, F32, BF16, F16"
        case "whole numbers for weights":
            edit_tensors(path, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.int8)}))
            return "lm_head.weight is stored as I8"
        case "unknown activation":
            edit_config(path, hidden_act="nope")
            return "hidden_act is 'nope', which is not known"
        case "empty vocabulary":
            edit_config(path, vocab_size=0)
            return "vocab_size is 0"
        case "no context":
            edit_config(path, max_position_embeddings=0)
            return "max_position_embeddings is 0"
        case "an LM head with fewer rows":
            edit_tensors(path, lambda tensors: tensors.update({HEAD: tensors[HEAD][:300]}))
            return r"lm_head.weight is \(300, 32\), the config says \(352, 32\)"
        case "an LM head with more rows":
            edit_tensors(path, lambda tensors: tensors.update({HEAD: tensors[HEAD].repeat(2, 1)}))
            return r"lm_head.weight is \(704, 32\), the config says \(352, 32\)"
        case "an LM head of another width":
            edit_tensors(path, lambda tensors: tensors.update({HEAD: tensors[HEAD][:, :16]}))
            return r"lm_head.weight is \(352, 16\), the config says \(352, 32\)"
        case _:
            edit_config(path, intermediate_size=48)
            return "model.layers.0.mlp.*, the config says"


DAMAGES = [
    *("no directory", "no config", "config is not JSON", "config is a list", "config of nonsense", "unsupported"),
    *("no weights", "only bin", "truncated", "truncated in the header", "empty", "noise"),
    *("missing tensor", "missing layer", "missing norm", "other shape"),
    *("quantised", "quantised by a method without a name", "scaled weights", "whole numbers for weights"),
    *("unknown activation", "empty vocabulary", "no context"),
    *("an LM head with fewer rows", "an LM head with more rows", "an LM head of another width"),
]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_what_to_do(damaged: Callable[..., Path], how: str) -> None:
    path = damaged()
    named = spoil(path, how)
    with pytest.raises(ModelError, match=named) as caught:
        LayerBlock.load(path, 0, Checkpoint(path).layer_count)
    assert caught.value.hint


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3)])
def test_a_stored_lm_head_counts_though_the_config_ties_it_to_the_embedding(
    damaged: Callable[..., Path], cuts: tuple[int, ...]
) -> None:
    path = damaged(tied=True)
    edit_tensors(path, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].flip(0)}))
    found = Checkpoint(path)
    blocks = Blocks(path, cuts)
    assert torch.allclose(blocks.run_chain([1, 2, 3]), oracle_logits(path, [1, 2, 3]), atol=1e-10)
    for block in blocks.blocks:
        held = layout.block_bytes(found, block.first_layer, block.end_layer, "float64")
        assert block.weight_bytes == held.weights
    (path / "model.safetensors").rename(path / "other.safetensors")
    index = {"weight_map": dict.fromkeys(found.files, "other.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "other.safetensors").unlink()
    assert Checkpoint(path).parameters == found.parameters


def test_a_bias_of_the_lm_head_is_ignored_as_transformers_ignores_it(damaged: Callable[..., Path]) -> None:
    path = damaged()
    edit_tensors(path, lambda tensors: tensors.update({"lm_head.bias": torch.ones(352, dtype=torch.float64)}))
    assert torch.allclose(Blocks(path, (0, 3)).run_chain([1, 2, 3]), oracle_logits(path, [1, 2, 3]), atol=1e-10)
    assert Checkpoint(path).parameters.head == 352 * 32


def test_an_index_that_points_outside_its_directory_is_refused(damaged: Callable[..., Path]) -> None:
    path = damaged(**SHARDED)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="points outside"):
        Checkpoint(path)


def test_an_index_that_names_the_wrong_file_is_refused(damaged: Callable[..., Path]) -> None:
    path = damaged(**SHARDED)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))
    name = "model.layers.0.self_attn.q_proj.weight"
    content["weight_map"][name] = next(file for file in files if file != content["weight_map"][name])
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="though the index names it"):
        LayerBlock.load(path, 0, 1)


@given(content=st.binary(max_size=200), length=st.integers(0, 200))
def test_no_bytes_make_the_header_reader_fail_otherwise_than_by_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + content)
    with contextlib.suppress(ModelError):
        read_header(file)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_from_the_config_equal_those_in_the_files(checkpoint: WriteCheckpoint, family: str, tied: bool) -> None:
    found = Checkpoint(checkpoint(family, tied=tied))
    sizes = layout._sizes_from_config(found)
    for layer, size in enumerate(found.layer_parameters()):
        assert size == sum(count for name, count in sizes.items() if name.startswith(f"model.layers.{layer}."))
    assert sizes["model.embed_tokens.weight"] == found.parameters.embedding == found.parameters.head


@given(
    layers=st.lists(st.integers(1, 50), min_size=1, max_size=9),
    head=st.integers(0, 100),
    data=st.data(),
)
def test_layers_are_shared_out_with_the_least_largest_stage(layers: list[int], head: int, data: st.DataObject) -> None:
    parameters = layout.Parameters(tuple(layers), 10, 0, head, False)
    stages = data.draw(st.integers(1, len(layers)))
    ranges = layout.split(parameters, stages)
    assert len(ranges) == stages
    assert [layer for span in ranges for layer in span] == list(range(len(layers)))
    assert all(len(span) for span in ranges)
    cuts = sorted(data.draw(st.permutations(range(1, len(layers))))[: stages - 1])
    other = [parameters.of(a, b) for a, b in zip([0, *cuts], [*cuts, len(layers)], strict=True)]
    assert max(parameters.of(span.start, span.stop) for span in ranges) <= max(other)


def test_equal_layers_are_shared_out_evenly() -> None:
    parameters = layout.Parameters((10,) * 8, 99, 0, 0, True)
    assert [len(span) for span in layout.split(parameters, 4)] == [2, 2, 2, 2]
    assert sorted(len(span) for span in layout.split(parameters, 3)) == [2, 3, 3]
    with pytest.raises(ModelError, match="8 layers cannot be shared among 9 stages"):
        layout.split(parameters, 9)


def test_names_of_models_lead_to_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolve_model("demo"), resolve_model("demo-draft")) == (MODEL_DIR, DRAFT_DIR)
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match=r"there is no directory \./nowhere"):
        resolve_model("./nowhere")

    def offline(*args: Any, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("the network is off")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ModelError, match=r"org/model is neither here nor can it be fetched: the network is off"
    ) as caught:
        resolve_model("org/model")
    assert "copy the model here" in str(caught.value)


def test_of_a_hub_model_a_stage_fetches_only_the_files_that_it_needs(
    checkpoint: WriteCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(**SHARDED)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, snapshot)
    fetched: list[str] = []

    def download(repository: str, file: str, *, revision: str | None = None) -> str:
        assert (repository, revision) == ("org/name", "abc")
        fetched.append(file)
        return str(shutil.copy(source / file, snapshot))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert Checkpoint(snapshot).fingerprint() == Checkpoint(source).fingerprint()
    assert Checkpoint(snapshot).split_layers(2) == Checkpoint(source).split_layers(2)
    assert fetched == []
    LayerBlock.load(snapshot, 4, 5)
    assert tuple(fetched) == Checkpoint(source).needed_files(4, 5)


def test_of_a_hub_model_in_one_file_only_who_holds_layers_fetches_it(
    checkpoint: WriteCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint()
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, snapshot)
    asked: list[str] = []

    def parse(_: object, repository: str, file: str, *, revision: str) -> SafetensorsFileMetadata:
        asked.append(f"header of {repository}/{file} {revision}")
        tensors = {
            name: TensorInfo(stored.dtype, list(stored.shape), (0, stored.size))
            for name, stored in read_header(source / file).items()
        }
        return SafetensorsFileMetadata({}, tensors)

    def download(repository: str, file: str, *, revision: str) -> str:
        asked.append(file)
        return str(shutil.copy(source / file, snapshot))

    monkeypatch.setattr(huggingface_hub.HfApi, "parse_safetensors_file_metadata", parse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        found = Checkpoint(snapshot)
        assert found.fingerprint() == Checkpoint(source).fingerprint()
        assert layout.block_bytes(found, 0, 1, "float64") == layout.block_bytes(Checkpoint(source), 0, 1, "float64")
    assert asked == ["header of org/name/model.safetensors abc"], "kept for the next start, which may have no network"
    LayerBlock.load(snapshot, 0, 1)
    assert asked[1:] == ["model.safetensors"]
    assert Checkpoint(snapshot).fingerprint() == Checkpoint(source).fingerprint()


def test_a_kept_header_that_is_damaged_is_named(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in checkpoint().glob("*.json"):
        shutil.copy(file, snapshot)
    (snapshot / "model.safetensors.header.json").write_text('{"model.embed_tokens.weight": 1}')
    with pytest.raises(ModelError, match=r"header\.json cannot be read"):
        Checkpoint(snapshot)
