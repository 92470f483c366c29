"""From a client's `Generate` to a session that the pipe can run, or to an error that names the limit.

Knows the model's tokenizer, context and EOS, and the topology's limits and defaults. Opens nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowspec.errors import LimitExceeded, RequestError, VersionMismatch
from flowspec.model.sampling import draw_seed
from flowspec.model.text import encode_prompt, load_tokenizer
from flowspec.model.weights import Checkpoint
from flowspec.roles.request import Admitted
from flowspec.topology import Topology
from flowspec.wire.messages import PROTOCOL_VERSION, Generate
from flowspec.wire.parameters import SamplingParameters

LIVE_ROWS = 256
"""Rows of a cache beyond prompt and output: live draft tokens, and dead ones that no verdict has reached yet."""

SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Admission:
    """Checks requests against one model and one topology."""

    def __init__(self, topology: Topology, checkpoint: Checkpoint, policies: tuple[str, ...]) -> None:
        self._topology = topology
        self._policies = policies
        self.tokenizer: Any = load_tokenizer(checkpoint.path)
        self._vocab_size = checkpoint.vocab_size
        self.eos = frozenset(checkpoint.eos_token_ids)
        self.context_limit = min(checkpoint.context_limit, topology.limits.context or checkpoint.context_limit)
        self._defaults = _defaults(topology, checkpoint.path)

    def admit(self, asked: Generate, peer: bytes) -> Admitted:
        """Raise `RequestError` or `LimitExceeded` when the request cannot be served."""
        if asked.protocol != PROTOCOL_VERSION:
            raise VersionMismatch(f"the client speaks protocol {asked.protocol}, this node {PROTOCOL_VERSION}")
        policy = asked.policy or self._topology.policy
        if policy not in self._policies:
            raise RequestError(f"there is no policy {policy!r}", hint=f"policies: {', '.join(self._policies)}")
        if len(asked.stop) > 16 or any(not text for text in asked.stop):
            raise RequestError("stop takes at most 16 strings, none of them empty")
        sampling = self._sampling(asked)
        prompt = self._prompt(asked)
        max_new = self._max_new_tokens(asked, len(prompt))
        return Admitted(
            request=asked.request,
            peer=peer,
            prompt=prompt,
            sampling=sampling,
            max_new_tokens=max_new,
            stop=asked.stop,
            eos=frozenset() if asked.ignore_eos else self.eos,
            policy=policy,
            row_limit=len(prompt) + max_new + LIVE_ROWS,
        )

    def _sampling(self, asked: Generate) -> SamplingParameters:
        chosen = {
            key: self._defaults[key] if getattr(asked, key) is None else getattr(asked, key) for key in SAMPLING_KEYS
        }
        seed = asked.seed if asked.seed is not None else self._topology.sampling.seed
        sampling = SamplingParameters(**chosen, seed=draw_seed() if seed is None else seed)
        sampling.validate()
        return sampling

    def _prompt(self, asked: Generate) -> tuple[int, ...]:
        if (asked.prompt is None) == (asked.prompt_token_ids is None):
            raise RequestError("a request needs either a prompt or prompt token ids")
        if asked.prompt_token_ids is not None:
            prompt = asked.prompt_token_ids
            wrong = next((token for token in prompt if not 0 <= token < self._vocab_size), None)
            if wrong is not None:
                raise RequestError(f"prompt token id {wrong} is outside the vocabulary of {self._vocab_size}")
        else:
            assert asked.prompt is not None
            prompt = tuple(encode_prompt(self.tokenizer, asked.prompt, asked.chat))
        if not prompt:
            raise RequestError("the prompt is empty")
        return prompt

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


def _defaults(topology: Topology, model: Path) -> dict[str, Any]:
    """Sampling values of the topology, or those of the model's generation config where the topology asks for it."""
    defaults = {key: getattr(topology.sampling, key) for key in SAMPLING_KEYS}
    file = model / "generation_config.json"
    if topology.sampling.generation_config and file.exists():
        published = json.loads(file.read_text())
        if not published.get("do_sample", False):
            published = {**published, "temperature": 0.0}
        defaults.update({key: published[key] for key in SAMPLING_KEYS if published.get(key) is not None})
    return defaults
