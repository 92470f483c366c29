"""The tokenizer of the synthetic model: every token is a word that can be pronounced, and means nothing.

Has what flowspec uses of a Hugging Face tokenizer. Words that it does not know are hashed to one that it does, so every
prompt has tokens; only its own words come back as they went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from flowspec.synthetic.text import VOCABULARY, mix

_SYLLABLES: Final = tuple(consonant + vowel for consonant in "bdfghjklmnprstvwyzcx" for vowel in "aeiou")
_VALUES: Final = {syllable: value for value, syllable in enumerate(_SYLLABLES)}


def word(token: int) -> str:
    """The word of a token: its digits to the base of the syllables."""
    parts = []
    while True:
        token, digit = divmod(token, len(_SYLLABLES))
        parts.append(_SYLLABLES[digit])
        if not token:
            return "".join(reversed(parts))


def token_of(text: str) -> int:
    """The token of a word; a hash where there is no such word."""
    digits = [_VALUES.get(text[start : start + 2]) for start in range(0, len(text), 2)]
    token = 0
    for digit in digits:
        if digit is None:
            break
        token = token * len(_SYLLABLES) + digit
    if None in digits or token >= VOCABULARY or word(token) != text:
        return mix(*text.encode()) % VOCABULARY
    return token


class WordTokenizer:
    """A token is a word with a space before it."""

    bos_token_id: Final = None
    chat_template: Final = None

    @property
    def backend_tokenizer(self) -> WordTokenizer:
        """What decodes: this one is fast enough."""
        return self

    def encode(self, text: str, **_: Any) -> list[int]:
        return [token_of(part) for part in text.split()]

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(f" {word(token)}" for token in tokens)
