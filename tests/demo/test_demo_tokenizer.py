"""Claims about the demo model's tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flowspec.demo import DRAFT_DIR, MODEL_DIR
from flowspec.training.demo.tokenizer import BEGIN_ID, END_ID, VOCAB_SIZE, train_tokenizer

SHIPPED: Any = AutoTokenizer.from_pretrained(MODEL_DIR)


@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    assert SHIPPED.decode(SHIPPED.encode(text)) == text


@given(st.text(alphabet=" \t\n\r_aA1.:(\"'é", max_size=60))
def test_any_layout_survives_encoding_and_decoding(text: str) -> None:
    assert SHIPPED.decode(SHIPPED.encode(text)) == text


def test_nothing_is_added_to_a_prompt() -> None:
    tokens = SHIPPED.encode("def f(self):")
    assert BEGIN_ID not in tokens
    assert END_ID not in tokens


def test_the_shipped_vocabulary_has_the_models_size() -> None:
    assert len(SHIPPED) == VOCAB_SIZE
    assert (SHIPPED.bos_token_id, SHIPPED.eos_token_id) == (BEGIN_ID, END_ID)


def test_target_and_draft_share_one_tokenizer() -> None:
    assert (MODEL_DIR / "tokenizer.json").read_bytes() == (DRAFT_DIR / "tokenizer.json").read_bytes()


def test_a_chat_is_its_messages_as_plain_text() -> None:
    messages = [{"role": "user", "content": "import os"}]
    assert SHIPPED.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "import os\n"


@pytest.mark.parametrize("text", ["", "\n\n    x", "ünïcode \x00"])
def test_a_freshly_trained_tokenizer_is_lossless_too(text: str) -> None:
    tokenizer = train_tokenizer(["def f():\n    return 1\n"] * 3, vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(text)) == text
