"""The synthetic model's words: every token has one of its own, and every prompt has tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowspec.model.text import Decoder, encode_prompt
from flowspec.synthetic.text import VOCABULARY
from flowspec.synthetic.words import WordTokenizer, token_of, word


def test_every_token_has_a_word_of_its_own() -> None:
    words = [word(token) for token in range(VOCABULARY)]
    assert len(set(words)) == VOCABULARY
    assert all(token_of(each) == token for token, each in enumerate(words))


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20))
def test_tokens_come_back_as_they_went_into_text(tokens: list[int]) -> None:
    tokenizer = WordTokenizer()
    assert tokenizer.encode(tokenizer.decode(tokens)) == tokens


@given(st.text(max_size=40))
def test_any_text_has_tokens_of_the_vocabulary(text: str) -> None:
    tokens = WordTokenizer().encode(text)
    assert len(tokens) == len(text.split())
    assert all(0 <= token < VOCABULARY for token in tokens)


def test_it_serves_prompts_and_streams_as_other_tokenizers_do() -> None:
    tokenizer = WordTokenizer()
    prompt = encode_prompt(tokenizer, "what is this?", chat=False)
    decoder = Decoder(tokenizer, prompt)
    pieces = [decoder.push(token) for token in (0, 31_999, 100)]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode([0, 31_999, 100])
