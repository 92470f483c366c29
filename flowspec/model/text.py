"""Tokens to text and back: the tokenizer, prompts, and text that grows token by token.

It knows no session and no model; that a stop string ends a request is decided by whoever asks `stopped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowspec.errors import ModelError, RequestError

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not (yet) a character."""
MOST_PENDING = 16
"""Tokens that may wait for their last character to be complete. A UTF-8 character has at most 4 bytes, so more are
bytes that will never be text; they are let go, so that a step's cost stays bounded."""
CONTEXT = 6
"""Prompt tokens that the first output tokens are decoded behind, for decoders that drop a leading space."""


def load_tokenizer(path: Path) -> Any:
    """The fast Hugging Face tokenizer in the folder `path`. Raises `ModelError` when there is none that can be used."""
    from transformers import AutoTokenizer

    if not path.is_dir():
        raise ModelError(f"no tokenizer: {path} is not a folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises a different type for every way in which a file can be wrong
        raise ModelError(
            f"the tokenizer in {path} cannot be read: {str(error).strip().splitlines()[0] if str(error) else error!r}",
            hint="a model folder needs tokenizer.json (and tokenizer_config.json) beside its weights",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"the tokenizer in {path} has no fast form", hint="convert it to tokenizer.json with transformers"
        )
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: str, chat: bool) -> tuple[int, ...]:
    """Token ids of a prompt: as it is (with the tokenizer's own leading tokens), or as a user's turn in a chat."""
    if chat:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    ids = _encode(tokenizer, prompt)
    if not ids and tokenizer.bos_token_id is not None:
        ids = (int(tokenizer.bos_token_id),)
    if not ids:
        raise RequestError("the prompt is empty, and this model has no token to begin with")
    return ids


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """Token ids of a conversation, ready for the assistant's turn. `messages` have "role" and "content"."""
    if not tokenizer.chat_template:
        raise RequestError("this model has no chat template", hint="send a plain prompt instead")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise RequestError(f"the model's chat template refuses these messages: {error}") from error
    return _encode(tokenizer, text, add_special_tokens=False)


def _encode(tokenizer: Any, text: str, **options: bool) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, verbose=False, **options))
    except Exception as error:  # each tokenizer has its own; some know texts with which they can do nothing
        raise RequestError(f"the model's tokenizer refuses this prompt: {error}") from error


class Decoder:
    """Token ids to text, a token at a time, in pieces that end with a complete character.

    The pieces together are what decoding all tokens at once gives, for every text that is valid UTF-8. A step decodes a
    window of the last few tokens, whatever the length of the text. Special tokens give no text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._window: list[int] = []  # tokens that gave the last piece (or the prompt's end), then pending ones
        self._settled = 0
        self._prefix = ""
        # One byte of a broken character can spoil all bytes beside it, so that a context that begins inside a character
        # may be unreadable to its end. A shorter one begins behind it; where the prompt itself is broken, none is.
        for count in range(min(CONTEXT, len(prompt)), 0, -1):
            text = self._backend.decode(list(prompt[-count:]), skip_special_tokens=True)
            if not text.endswith(REPLACEMENT):
                self._window, self._settled, self._prefix = list(prompt[-count:]), count, text
                break

    def push(self, token: int) -> str:
        """The text that is complete with this token; empty while a character is not."""
        self._window.append(token)
        text = self._decode()
        pending = len(self._window) - self._settled
        if text.endswith(REPLACEMENT) and pending <= MOST_PENDING:
            return ""
        if len(text) <= len(self._prefix) and pending <= MOST_PENDING:
            return ""
        return self._settle(text)

    def finish(self) -> str:
        """What is left, broken characters included."""
        return self._settle(self._decode())

    def _settle(self, text: str) -> str:
        piece = text[len(self._prefix) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._prefix = self._decode()
        return piece

    def _decode(self) -> str:
        text: str = self._backend.decode(self._window, skip_special_tokens=True)
        return text


class TextStream:
    """The text of one request as it grows: decoded, cut at the first stop string, without EOS tokens.

    A piece of text is given out once it can no longer turn out to be part of a stop string. Nothing depends on how the
    tokens are chunked.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), eos: Iterable[int] = (), prompt: Sequence[int] = ()
    ) -> None:
        self._decoder = Decoder(tokenizer, prompt)
        self._stop = tuple(text for text in stop if text)
        self._eos = frozenset(eos)
        self._held = ""
        self.stopped = False
        """A stop string was met; further tokens are ignored."""
        self.tokens = 0
        """Tokens that belong to the text: all that were pushed, up to and including the one that completed the stop
        string."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that is certain with these tokens; may be empty."""
        pieces = []
        for token in token_ids:
            if self.stopped:
                break
            self.tokens += 1
            if token not in self._eos:
                pieces.append(self._scan(self._decoder.push(token)))
        return "".join(pieces)

    def finish(self) -> str:
        """The rest of the text, when no more tokens follow. Empty after a stop string."""
        if self.stopped:
            return ""
        text = self._scan(self._decoder.finish())
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _scan(self, piece: str) -> str:
        if not piece or not self._stop:
            return piece
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
