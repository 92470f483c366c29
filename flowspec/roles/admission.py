"""From a client's `Generate` to a session that the pipe can run, or to an error that names the limit.

Knows the model's tokenizer, context and EOS, and the topology's limits and defaults. Opens nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowspec.errors import LimitExceeded, ModelError, RequestError, VersionMismatch
from flowspec.model.sampling import draw_seed
from flowspec.model.target import Target, tokenizer_of
from flowspec.model.text import encode_prompt
from flowspec.roles.request import Admitted
from flowspec.schedule.options import PolicyOptions, read_options, written_options
from flowspec.topology import Topology
from flowspec.topology.sections import SamplingDefaults
from flowspec.wire.messages import PROTOCOL_VERSION, Generate
from flowspec.wire.parameters import SamplingParameters

LIVE_ROWS = 256
"""Rows of a cache beyond prompt and output: live draft tokens, and dead ones that no verdict has reached yet."""

SPARE_ROWS = 128
"""Those of dead ones, where a policy has more live ones than usual."""

TOKEN_BYTES = 16
"""Bytes of a prompt for each token of the context. Words and code have three to five in a token; sixteen have only long
runs of one character, and no text consists of those."""

STOPS, STOP_CHARACTERS = 16, 1024
"""Most stop strings of a request, and most characters of one: every piece of text is compared with all of them, and a
text that resembles one of them with every beginning of it."""

SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Admission:
    """Checks requests against one model and one topology."""

    def __init__(self, topology: Topology, checkpoint: Target) -> None:
        self._topology = topology
        self._policy_options = written_options(topology.policy, topology.policy_options)
        self.tokenizer: Any = tokenizer_of(checkpoint)
        # With its first text a tokenizer drops what its file says about cutting and padding. Later, when one thread
        # makes tokens of text and another text of tokens, nothing may change it.
        self.tokenizer.encode("")
        self._vocab_size = checkpoint.vocab_size
        self.eos = frozenset(checkpoint.eos_token_ids)
        self.context_limit = min(checkpoint.context_limit, topology.limits.context or checkpoint.context_limit)
        self._defaults = _defaults(topology, checkpoint.path)

    def check(self, asked: Generate) -> None:
        """Raise what is wrong with a request as far as it can be told before its prompt is read, which may take long.

        As `admit`, it raises `RequestError` or `LimitExceeded` when the request cannot be served.
        """
        if asked.protocol != PROTOCOL_VERSION:
            raise VersionMismatch(f"the client speaks protocol {asked.protocol}, this node {PROTOCOL_VERSION}")
        self._policy(asked)
        if len(asked.stop) > STOPS or not all(0 < len(text) <= STOP_CHARACTERS for text in asked.stop):
            raise RequestError(
                f"stop takes at most {STOPS} strings, none of them empty or of more than {STOP_CHARACTERS} characters"
            )
        self._sampling(asked)
        if (asked.prompt is None) == (asked.prompt_token_ids is None):
            raise RequestError("a request needs either a prompt or prompt token ids")
        if asked.prompt is not None:
            self._check_text(asked.prompt)
        else:
            self._max_new_tokens(asked, len(asked.prompt_token_ids or ()))

    def read(self, asked: Generate) -> tuple[int, ...]:
        """The tokens of the prompt of a request that passed `check`. May take long, and may run on any thread."""
        if asked.prompt is None:
            prompt = asked.prompt_token_ids or ()
            self._check_vocabulary(prompt, "prompt")
            return prompt
        prompt = encode_prompt(self.tokenizer, asked.prompt, asked.chat)
        wrong = self._outside(prompt)
        if wrong is not None:
            raise RequestError(
                f"the prompt holds {self.tokenizer.decode([wrong])!r}, which the tokenizer knows as {wrong}, and the "
                f"model, whose vocabulary has {self._vocab_size} tokens, does not",
                hint="leave it out; or the tokenizer is of another model",
            )
        return prompt

    def admit(self, asked: Generate, peer: bytes, prompt: tuple[int, ...]) -> Admitted:
        """`prompt` is what was read of a request that passed `check`."""
        policy, options = self._policy(asked)
        if not prompt:
            raise RequestError("the prompt is empty")
        max_new = self._max_new_tokens(asked, len(prompt))
        self._check_resume(asked, max_new)
        return Admitted(
            request=asked.request,
            peer=peer,
            prompt=prompt,
            sampling=self._sampling(asked),
            max_new_tokens=max_new,
            stop=asked.stop,
            eos=frozenset() if asked.ignore_eos else self.eos,
            policy=policy,
            row_limit=len(prompt) + max_new + max(LIVE_ROWS, options.live_tokens + SPARE_ROWS),
            options=options,
            trace=asked.trace,
            resume=asked.resume,
        )

    def _check_resume(self, asked: Generate, max_new_tokens: int) -> None:
        if not asked.resume:
            return
        if asked.seed is None:
            raise RequestError("a request that resumes needs the seed that it began with")
        if len(asked.resume) > max_new_tokens:
            raise LimitExceeded("max_new_tokens", len(asked.resume), max_new_tokens)
        self._check_vocabulary(asked.resume, "resumed")

    def _check_vocabulary(self, tokens: tuple[int, ...], what: str) -> None:
        wrong = self._outside(tokens)
        if wrong is not None:
            raise RequestError(f"{what} token id {wrong} is outside the vocabulary of {self._vocab_size}")

    def _outside(self, tokens: tuple[int, ...]) -> int | None:
        """The first of `tokens` that the model does not have."""
        return next((token for token in tokens if not 0 <= token < self._vocab_size), None)

    def _sampling(self, asked: Generate) -> SamplingParameters:
        chosen = {
            key: self._defaults[key] if getattr(asked, key) is None else getattr(asked, key) for key in SAMPLING_KEYS
        }
        seed = asked.seed if asked.seed is not None else self._topology.sampling.seed
        sampling = SamplingParameters(**chosen, seed=draw_seed() if seed is None else seed)
        sampling.validate()
        return sampling

    def _policy(self, asked: Generate) -> tuple[str, PolicyOptions]:
        policy = asked.policy or self._topology.policy
        given = self._policy_options if policy == self._topology.policy else ()
        return policy, read_options(policy, (*given, *((each.name, each.value) for each in asked.policy_options)))

    def _check_text(self, prompt: str) -> None:
        """Refuse what would not fit anyway before its tokens are counted, which takes a second for a megabyte."""
        size, most = len(prompt.encode()), TOKEN_BYTES * self.context_limit
        if size > most:
            raise LimitExceeded(
                f"the longest prompt for a context of {self.context_limit} tokens, in bytes,",
                size,
                most,
                hint="shorten the prompt; limits.context in the topology and the model's own context bound it",
            )

    def _max_new_tokens(self, asked: Generate, prompt_length: int) -> int:
        limits = self._topology.limits
        room = self.context_limit - prompt_length
        if room < 1:
            raise LimitExceeded(
                "the context (prompt and output together, in tokens)",
                prompt_length + 1,
                self.context_limit,
                hint="shorten the prompt; limits.context in the topology and the model's own context bound it",
            )
        if asked.max_new_tokens is None:
            return min(limits.max_new_tokens, room)
        if asked.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {asked.max_new_tokens}; it must be 1 or more")
        if asked.max_new_tokens > limits.max_new_tokens:
            raise LimitExceeded(
                "limits.max_new_tokens",
                asked.max_new_tokens,
                limits.max_new_tokens,
                hint="raise it in the topology, or ask for fewer tokens",
            )
        if asked.max_new_tokens > room:
            raise LimitExceeded(
                "the context (prompt and output together, in tokens)",
                prompt_length + asked.max_new_tokens,
                self.context_limit,
                hint=f"the prompt takes {prompt_length} tokens: ask for at most {room} new ones",
            )
        return asked.max_new_tokens


def _defaults(topology: Topology, model: Path | None) -> dict[str, Any]:
    """Sampling values of the topology; for what it does not set, the model's own where it asks for them."""
    section = topology.sampling
    defaults = {key: getattr(section, key) for key in SAMPLING_KEYS}
    file = model / "generation_config.json" if model is not None else None
    if section.generation_config and file is not None and file.exists():
        published = _published(file)
        defaults |= {key: value for key, value in published.items() if key not in section.model_fields_set}
    return defaults


def _published(file: Path) -> dict[str, Any]:
    """What a generation config says about sampling, in the ranges that a topology has for it; else a `ModelError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not content.get("do_sample", False):
            content = {**content, "temperature": 0.0}
        found = {key: content[key] for key in SAMPLING_KEYS if content.get(key) is not None}
        checked = SamplingDefaults.model_validate(found)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _unusable(file, f"{wrong['loc'][0]} cannot be {wrong['input']!r}: {wrong['msg']}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise _unusable(file, str(error).splitlines()[0]) from error
    return {key: getattr(checked, key) for key in found}


def _unusable(file: Path, reason: str) -> ModelError:
    return ModelError(
        f"{file}: {reason}", hint="mend it, or leave out `generation_config` in the topology's section `sampling`"
    )
