"""Text that grows token by token is the text of all tokens, never broken, and never shows a stop string."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from flowspec.errors import ModelError, RequestError
from flowspec.model.text import MOST_PENDING, Decoder, TextStream, encode_chat, encode_prompt, load_tokenizer
from tests.checkpoints import EOS_ID, write_tokenizer

TOKENIZERS: dict[str, Any] = {}


class Wrapped:
    """As much of a Hugging Face tokenizer as decoding needs."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


def byte_level() -> Any:
    return TOKENIZERS["byte-level"]


def byte_fallback() -> Any:
    return TOKENIZERS["byte-fallback"]


@pytest.fixture(scope="module", autouse=True)
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    TOKENIZERS["byte-level"] = load_tokenizer(folder)
    pieces = [
        "<s>",
        "</s>",
        "<unk>",
        "▁",
        "▁the",
        "▁a",
        "e",
        "t",
        "h",
        "中",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    backend = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    TOKENIZERS["byte-fallback"] = Wrapped(backend)


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def chunks(items: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(min(cut, len(items)) for cut in cuts), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(edges)]


@given(st.text(max_size=60), st.lists(st.integers(0, 200), max_size=5))
@example("naïve 中文 👩‍👩‍👧 \u200d\ufffd end\ufffd", [3, 4])
@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_the_pieces_are_the_text_however_the_tokens_are_chunked(kind: Any, text: str, cuts: list[int]) -> None:
    tokenizer = kind()
    ids = encode(tokenizer, text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(chunk) for chunk in chunks(ids, cuts)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.backend_tokenizer.decode(ids)
    assert stream.tokens == len(ids)
    assert not stream.stopped


@given(st.lists(st.integers(2, 300), max_size=MOST_PENDING))
def test_bytes_that_are_no_text_come_out_as_in_one_go(ids: list[int]) -> None:
    decoder = Decoder(byte_level())
    pieces = [decoder.push(token) for token in ids]
    assert "".join([*pieces, decoder.finish()]) == byte_level().backend_tokenizer.decode(ids)


@given(st.text(alphabet="中é👧a ", min_size=1, max_size=30))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    stream = TextStream(byte_level())
    for token in encode(byte_level(), text):
        assert "\ufffd" not in stream.push([token])
    assert stream.finish() == ""


def test_a_broken_character_at_the_end_is_shown_as_such() -> None:
    ids = encode(byte_level(), "a中")[:-1]
    stream = TextStream(byte_level())
    assert stream.push(ids) == "a"
    assert stream.finish() == "\ufffd"


def test_a_step_decodes_a_bounded_window_whatever_came_before() -> None:
    sizes: list[int] = []

    class Counting:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            sizes.append(len(ids))
            text: str = backend.decode(ids, skip_special_tokens=skip_special_tokens)
            return text

    backend = byte_level().backend_tokenizer
    garbage = encode(byte_level(), "中")[:1] * 100
    decoder = Decoder(Wrapped(Counting()))  # type: ignore[arg-type]
    for token in encode(byte_level(), "the quick brown fox " * 100) + garbage:
        decoder.push(token)
    assert max(sizes) <= 2 * MOST_PENDING + 2
    assert len(sizes) <= 2 * (len(garbage) + 2000)


def test_output_after_a_prompt_keeps_the_space_that_a_decoder_would_strip() -> None:
    backend = byte_fallback().backend_tokenizer
    the, a = backend.token_to_id("▁the"), backend.token_to_id("▁a")
    assert Decoder(byte_fallback(), [the]).push(a) == " a"
    assert Decoder(byte_fallback()).push(a) == "a"


@given(st.text("the aé中👧", min_size=1, max_size=9), st.text("the aé中👧", max_size=9))
@example("the👧👧", "a the")
@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_output_goes_on_from_any_prompt_as_the_two_decoded_together(kind: Any, prompt: str, output: str) -> None:
    backend = kind().backend_tokenizer
    before, after = encode(kind(), prompt), encode(kind(), output)
    decoder = Decoder(kind(), before)
    pieces = [decoder.push(token) for token in after]
    assert "".join([*pieces, decoder.finish()]) == backend.decode([*before, *after])[len(backend.decode(before)) :]


@given(
    st.lists(st.sampled_from("ab中\n"), max_size=40).map("".join),
    st.lists(st.text("ab中\n", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_a_stop_string_never_leaks_and_nothing_before_it_is_lost(text: str, stop: list[str], cuts: list[int]) -> None:
    ids = encode(byte_level(), text)
    stream = TextStream(byte_level(), stop)
    shown = ""
    for chunk in chunks(ids, cuts):
        shown += stream.push(chunk)
        assert not any(word in shown for word in stop)
        assert text.startswith(shown)
    shown += stream.finish()
    assert not any(word in shown for word in stop)
    if not stream.stopped:
        assert shown == text
        assert not any(word in text for word in stop)
    else:
        assert text[len(shown) :].startswith(tuple(stop))
        kept = byte_level().backend_tokenizer.decode(ids[: stream.tokens])
        before = byte_level().backend_tokenizer.decode(ids[: stream.tokens - 1])
        assert any(word in kept for word in stop)
        assert not any(word in before for word in stop)


def test_text_that_begins_a_stop_string_is_held_until_it_is_certain() -> None:
    stream = TextStream(byte_level(), ["\n\n"])
    assert stream.push(encode(byte_level(), "x\n")) == "x"
    assert stream.push(encode(byte_level(), "y\n")) == "\ny"
    assert stream.finish() == "\n"


def test_tokens_after_a_stop_string_are_ignored() -> None:
    stream = TextStream(byte_level(), ["b"])
    ids = encode(byte_level(), "a") + encode(byte_level(), "b") + encode(byte_level(), "c")
    assert stream.push(ids) == "a"
    assert (stream.stopped, stream.tokens) == (True, 2)
    assert (stream.push(ids), stream.finish(), stream.tokens) == ("", "", 2)


def test_eos_is_no_text_but_counts_as_a_token() -> None:
    stream = TextStream(byte_level(), eos={EOS_ID})
    assert stream.push([*encode(byte_level(), "a"), EOS_ID]) == "a"
    assert (stream.finish(), stream.tokens) == ("", 2)


def test_a_prompt_is_encoded_as_it_is_or_as_a_turn() -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(encode_prompt(tokenizer, "the fox", chat=False)) == "the fox"
    assert tokenizer.decode(encode_prompt(tokenizer, "the fox", chat=True)) == "the fox\n"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.decode(encode_chat(tokenizer, turns)) == "a\nb\n"


def test_an_empty_prompt_begins_with_the_models_first_token() -> None:
    assert encode_prompt(byte_level(), "", chat=False) == (0,)


def test_a_chat_without_a_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(RequestError, match="no chat template"):
        encode_prompt(tokenizer, "a", chat=True)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        encode_prompt(tokenizer, "a", chat=True)


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
