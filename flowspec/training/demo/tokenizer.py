"""The demo model's tokenizer: byte-level BPE of 4,096 tokens, in Hugging Face format.

Every text survives encoding and decoding unchanged, since the alphabet is all 256 bytes and nothing is normalised.
No begin token is added by itself: training windows start anywhere in a file, so a prompt is taken as it stands.

The module refuses to know models and what the texts are about.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE: Final = 4096
BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
BEGIN_ID: Final = 0
END_ID: Final = 1
MAX_LENGTH: Final = 2048

PIECES: Final = r"\n+[ \t]*| ?[^\W\d]+| ?\d{1,3}| ?[^\s\w]+|[^\S\n]+(?=[^\S\n])|\s"
"""Where merges may happen: a line break goes with the indentation after it, a word with the blank before it."""

CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The model has never seen a chat: messages are simply text to be continued."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Any:
    """A tokenizer learnt from these texts, as a `PreTrainedTokenizerFast`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored in `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(str(folder))
