"""What a caller may say about a request, checked, and the message that is made of it.

Types, and the ranges that hold for every pipeline, are checked before anything is sent, and told by the caller's own
names. What depends on a pipeline is checked there (`flowspec.roles.admission`).
"""

from __future__ import annotations

import contextlib
import math
import operator
import reprlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypedDict, TypeVar

from flowspec.errors import RequestError
from flowspec.schedule.options import as_text
from flowspec.wire.codec import INT_MAX, INT_MIN
from flowspec.wire.messages import Generate, PolicyOption
from flowspec.wire.parameters import SamplingParameters

Value = TypeVar("Value")


class Options(TypedDict, total=False):
    """What may be said about a request; what is left out or None is the default of the pipeline's topology.

    Numbers may be of any type of numbers, those of numpy included, as long as nothing is lost.
    """

    prompt_token_ids: Iterable[int] | None
    """The prompt as tokens, in place of text."""
    chat: bool | None
    """Apply the model's chat template to the prompt."""
    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Iterable[str] | None
    """The text ends before the first of these; one of them may be given as it is."""
    ignore_eos: bool | None
    policy: str | None
    policy_options: Mapping[str, bool | int | str] | None
    """Of the policy, by name; see `flowspec.schedule.options`."""
    trace: bool | None
    """Have all nodes note what they do for this request; see `Generation.trace`."""


def request_of(prompt: str | None, options: Mapping[str, Any]) -> Generate:
    """A new request for a continuation of `prompt`, or of the option `prompt_token_ids`; raises `RequestError`."""
    unknown = set(options) - Options.__optional_keys__
    if unknown:
        raise RequestError(
            f"unknown options: {', '.join(sorted(unknown))}",
            hint=f"there are {', '.join(Options.__annotations__)}",
        )

    def given(name: str, read: Callable[[str, Any], Value]) -> Value | None:
        value = options.get(name)
        return None if value is None else read(name, value)

    token_ids = given("prompt_token_ids", _token_ids)
    if (prompt is None) == (token_ids is None):
        raise RequestError("give either a prompt or prompt_token_ids")
    sampling = {
        "temperature": given("temperature", _number),
        "top_k": given("top_k", _whole),
        "top_p": given("top_p", _number),
        "min_p": given("min_p", _number),
        "repetition_penalty": given("repetition_penalty", _number),
        "seed": given("seed", _whole),
    }
    known: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    SamplingParameters(**known).validate()
    return Generate(
        request=secrets.token_hex(8),
        prompt=None if prompt is None else _prompt(prompt),
        prompt_token_ids=token_ids,
        chat=given("chat", _flag) or False,
        max_new_tokens=given("max_new_tokens", _whole),
        **{**dict.fromkeys(sampling), **known},
        stop=given("stop", _texts) or (),
        ignore_eos=given("ignore_eos", _flag) or False,
        policy=given("policy", _text),
        policy_options=given("policy_options", _policy_options) or (),
        trace=given("trace", _flag) or False,
    )


def _prompt(value: Any) -> str:
    if not isinstance(value, str):
        hint = "decode it first" if isinstance(value, bytes) else "token ids are given as prompt_token_ids"
        raise _wrong("prompt", "text", value, hint)
    return _text("prompt", value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} is no text that can be sent: {error.reason} (at {error.start})") from None
    return str(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_text(name, value),)
    return tuple(_text(f"each of {name}", each) for each in _items(name, "text, or a list of texts", value))


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    one = f"each of {name}"
    return tuple(_whole(one, each) for each in _items(name, "a list of whole numbers", value))


def _items(name: str, wanted: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, str | bytes | Mapping):
        with contextlib.suppress(TypeError):
            return tuple(value)
    raise _wrong(name, wanted, value)


def _whole(name: str, value: Any) -> int:
    try:
        number = None if isinstance(value, bool) else int(operator.index(value))
    except TypeError:
        number = None
    if number is None:
        raise _wrong(name, "a whole number", value)
    if not INT_MIN <= number <= INT_MAX:
        raise RequestError(f"{name} must be a whole number of at most 64 bits")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(name, "a number", value)
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which is out of every range, and told as such


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "True or False", value)
    return value


def _policy_options(name: str, value: Any) -> tuple[PolicyOption, ...]:
    """As a message has them; what they may be is known where the policy is."""
    if not isinstance(value, Mapping):
        raise _wrong(name, "a dict of names and values", value)
    options = {_text(f"each name in {name}", each): value[each] for each in value}
    return tuple(PolicyOption(option, _text(f"{name}[{option!r}]", text)) for option, text in as_text(options))


def _wrong(name: str, wanted: str, value: object, hint: str | None = None) -> RequestError:
    return RequestError(f"{name} must be {wanted}, not {reprlib.repr(value)}", hint=hint)
