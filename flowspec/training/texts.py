"""From documents to tokens on the two sides of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from flowspec.errors import ConfigurationError, ModelError
from flowspec.training.documents import Document
from flowspec.training.windows import TokenFile

TAIL_PERCENT: Final = 6
"""Of every document's tokens that are held out where no whole document is."""
TOGETHER: Final = 256
"""Documents that are tokenised at once."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokens to train on and tokens kept from training, with the end token behind each document."""

    train: list[TokenFile]
    heldout: list[TokenFile]
    by_tail: bool
    """The held-out side is the end of each document, because no whole document was left for it."""

    @property
    def train_tokens(self) -> int:
        return sum(len(file.tokens) for file in self.train)

    @property
    def heldout_tokens(self) -> int:
        return sum(len(file.tokens) for file in self.heldout)

    def digest(self) -> str:
        """Of the tokens to train on: equal when the same text is read in the same order."""
        digest = hashlib.sha256()
        for file in self.train:
            digest.update(len(file.tokens).to_bytes(8, "big") + file.tokens.tobytes())
        return digest.hexdigest()[:16]

    def counts(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How often each token occurs in what is trained on: (vocab_size,)."""
        total = np.zeros(vocab_size, np.int64)
        for file in self.train:
            total += np.bincount(file.tokens, minlength=vocab_size)[:vocab_size]
        return total


def read_texts(documents: Iterable[Document], tokenizer: Any, eos_id: int | None, window: int) -> Texts:
    """Tokenise; each side has at least one `window` of tokens. ConfigurationError when there is too little text."""
    sides: tuple[list[TokenFile], list[TokenFile]] = ([], [])
    for document, tokens in _encoded(documents, tokenizer, [] if eos_id is None else [eos_id]):
        sides[document.heldout].append(TokenFile(tokens))
    train, heldout = sides
    by_tail = sum(len(file.tokens) for file in heldout) <= window or not train
    if by_tail:
        train, heldout = _tails(train + heldout)
    found = Texts(train, heldout, by_tail)
    if min(found.train_tokens, found.heldout_tokens) <= window:
        raise ConfigurationError(
            f"{found.train_tokens + found.heldout_tokens} tokens are too little text to train on",
            hint=f"a window is {window} tokens, and {TAIL_PERCENT} % of the text are held out; give more text with "
            "--data, or a smaller --length",
        )
    return found


def _encoded(documents: Iterable[Document], tokenizer: Any, end: list[int]) -> Iterator[tuple[Document, Any]]:
    waiting = iter(documents)
    while together := list(islice(waiting, TOGETHER)):
        for chat in (False, True):
            chosen = [document for document in together if bool(document.turns) == chat]
            if not chosen:
                continue
            texts = [_as_chat(tokenizer, document) if chat else document.text for document in chosen]
            rows = tokenizer(texts, add_special_tokens=not chat, verbose=False)["input_ids"]
            for document, row in zip(chosen, rows, strict=True):
                yield document, np.array([*row, *end], np.int32)


def _as_chat(tokenizer: Any, document: Document) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{document.name} is a conversation, and the model has no chat template",
            hint='give the text itself: a line with "text"',
        )
    turns = [{"role": role, "content": content} for role, content in document.turns]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise ConfigurationError(f"{document.name}: the model's chat template refuses it: {error}") from error
    return text


def _tails(files: list[TokenFile]) -> tuple[list[TokenFile], list[TokenFile]]:
    cuts = [len(file.tokens) - max(1, len(file.tokens) * TAIL_PERCENT // 100) for file in files]
    fronts = [TokenFile(file.tokens[:cut]) for file, cut in zip(files, cuts, strict=True)]
    return fronts, [TokenFile(file.tokens[cut:]) for file, cut in zip(files, cuts, strict=True)]
