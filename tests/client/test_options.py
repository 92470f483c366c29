"""What may be said about a request, and in whose words it is refused."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from flowspec.client import Client
from flowspec.errors import RequestError
from flowspec.options import Options, request_of
from flowspec.wire.frames import decode, encode
from flowspec.wire.messages import Generate, PolicyOption

OPTIONS = sorted(Options.__optional_keys__)


def asked(prompt: Any = "a", **options: Any) -> Generate:
    """The message as it arrives."""
    message = request_of(prompt, options)
    arrived = decode([bytes(frame) for frame in encode(message)]).message
    assert arrived == message
    assert isinstance(arrived, Generate)
    return arrived


def test_none_is_as_good_as_nothing_said() -> None:
    nothing = asked()
    for option in OPTIONS:
        given = asked(**{option: None})
        assert {**vars_of(given), "request": nothing.request} == vars_of(nothing), option
    assert (nothing.stop, nothing.policy_options, nothing.chat, nothing.temperature) == ((), (), False, None)


def vars_of(message: Generate) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def test_a_text_is_one_stop_string() -> None:
    assert asked(stop="self").stop == ("self",)
    assert asked(stop=["self", "\n\n"]).stop == asked(stop=(text for text in ("self", "\n\n"))).stop == ("self", "\n\n")


def test_whole_numbers_are_numbers_and_those_of_numpy_are_taken() -> None:
    class Count(IntEnum):
        FEW = 5

    few = asked(temperature=1, top_p=np.float32(0.5), top_k=np.int64(3), max_new_tokens=Count.FEW, seed=np.uint8(7))
    assert (few.temperature, few.top_p, few.top_k, few.max_new_tokens, few.seed) == (1.0, 0.5, 3, 5, 7)
    assert type(few.temperature) is float
    for token_ids in ([4, 5], (4, 5), range(4, 6), np.array([4, 5]), iter([4, 5])):
        assert asked(None, prompt_token_ids=token_ids).prompt_token_ids == (4, 5)


def test_options_of_a_policy_travel_as_text() -> None:
    given = asked(policy_options={"tree": np.int64(8), "prune": False, "segment": "3"}).policy_options
    assert given == (PolicyOption("tree", "8"), PolicyOption("prune", "false"), PolicyOption("segment", "3"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_new_tokens": 5.0}, "max_new_tokens must be a whole number, not 5.0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, not True"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be a whole number, not '5'"),
        ({"top_k": np.float64(2)}, "top_k must be a whole number, not "),
        ({"seed": 2**64}, "seed must be a whole number of at most 64 bits"),
        ({"seed": -1}, "seed is -1; it must be between 0 and"),
        ({"temperature": "0.8"}, "temperature must be a number, not '0.8'"),
        ({"temperature": False}, "temperature must be a number, not False"),
        ({"temperature": float("nan")}, "temperature is nan; it must be between 0 and 100"),
        ({"temperature": 10**400}, "temperature is inf; it must be between 0 and 100"),
        ({"top_p": 1 + 1j}, "top_p must be a number, not (1+1j)"),
        ({"min_p": -0.5}, "min_p is -0.5; it must be between 0 (off) and 1"),
        ({"repetition_penalty": [1.1]}, "repetition_penalty must be a number, not [1.1]"),
        ({"stop": 5}, "stop must be text, or a list of texts, not 5"),
        ({"stop": b"self"}, "stop must be text, or a list of texts, not b'self'"),
        ({"stop": ["a", 5]}, "each of stop must be text, not 5"),
        ({"chat": 1}, "chat must be True or False, not 1"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, not 'no'"),
        ({"trace": "trace.json"}, "trace must be True or False, not 'trace.json'"),
        ({"policy": 3}, "policy must be text, not 3"),
        ({"policy_options": "tree=4"}, "policy_options must be a dict of names and values, not 'tree=4'"),
        ({"policy_options": {4: "tree"}}, "each name in policy_options must be text, not 4"),
        ({"policy_options": {"tree": "\ud800"}}, "policy_options['tree'] is no text that can be sent"),
        ({"prompt": [5, 6]}, "prompt must be text, not [5, 6]\n  token ids are given as prompt_token_ids"),
        ({"prompt": b"def"}, "prompt must be text, not b'def'\n  decode it first"),
        ({"prompt": "a\ud800"}, "prompt is no text that can be sent: surrogates not allowed (at 1)"),
        ({"prompt": None, "prompt_token_ids": "56"}, "prompt_token_ids must be a list of whole numbers, not '56'"),
        ({"prompt": None, "prompt_token_ids": 5}, "prompt_token_ids must be a list of whole numbers, not 5"),
        ({"prompt": None, "prompt_token_ids": [5, 6.0]}, "each of prompt_token_ids must be a whole number, not 6.0"),
        ({"prompt": None, "prompt_token_ids": ["5"]}, "each of prompt_token_ids must be a whole number, not '5'"),
        ({"prompt": None}, "give either a prompt or prompt_token_ids"),
        ({"prompt_token_ids": [5]}, "give either a prompt or prompt_token_ids"),
        ({"max_tokens": 5}, "unknown options: max_tokens\n  there are prompt_token_ids, chat, max_new_tokens, "),
    ],
)
def test_what_does_not_fit_is_refused_by_the_callers_own_names_before_anything_is_sent(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(words)}"):
        Client("tcp://127.0.0.1:1").stream(**{"prompt": "a", **given})


def test_a_refusal_does_not_repeat_what_is_long() -> None:
    with pytest.raises(RequestError) as caught:
        request_of(None, {"prompt_token_ids": "5 " * 10_000})
    assert len(str(caught.value)) < 120
