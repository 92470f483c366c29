"""What a command line says about a request, checked before anything is started."""

from __future__ import annotations

import re
import socket
import sys
from typing import Any, get_args

from flowspec.errors import ConfigurationError, RequestError
from flowspec.wire.parameters import SamplingParameters

ADDRESS = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,6})")

MOST_TOKENS = 2**31
"""More than any pipeline's limit, which is asked there."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def options_of(**given: Any) -> dict[str, Any]:
    """The options of `Client.stream` among `given`, None meaning the default of the node; raises when out of range."""
    options = {name: value for name, value in given.items() if value is not None}
    SamplingParameters(**{name: options[name] for name in SAMPLING if name in options}).validate()
    if not 1 <= options.get("max_new_tokens", 1) <= MOST_TOKENS:
        raise RequestError(f"max_new_tokens is {options['max_new_tokens']}; it must be from 1 to {MOST_TOKENS:,}")
    if any(not text for text in options.get("stop", ())):
        raise RequestError("a stop text must not be empty")
    for text in options.get("stop", ()):
        check_text(text, "--stop")
    return options


def check_counts(*, stages: int | None = None, connect_timeout: float | None = None) -> None:
    if stages is not None and stages < 1:
        raise ConfigurationError(f"stages is {stages}; a pipeline has at least one")
    if connect_timeout is not None and not 0 < connect_timeout < float("inf"):
        raise ConfigurationError(f"connect-timeout is {connect_timeout}; it must be above 0 seconds")


def check_policy(policy: str | None) -> None:
    from flowspec.schedule.policies import POLICIES

    if policy is not None and policy not in POLICIES:
        raise RequestError(f"there is no policy {policy!r}", hint=f"policies: {', '.join(POLICIES)}")


def policy_options(policy: str | None, given: list[str] | None) -> dict[str, str]:
    """What `--policy-option NAME=VALUE` says; checked here where the policy is known here."""
    from flowspec.schedule.options import read_options

    options: dict[str, str] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise RequestError(f"--policy-option {each!r} is not NAME=VALUE", hint="for example tree=64")
        options[name.strip()] = value.strip()
    if policy is not None:
        read_options(policy, options.items())
    return options


def check_drafter(drafter: str | None) -> None:
    from flowspec.topology import Drafter

    kinds = get_args(Drafter.model_fields["kind"].annotation)
    if drafter is not None and drafter not in kinds:
        raise ConfigurationError(f"there is no drafter {drafter!r}", hint=f"drafters: {', '.join(kinds)}")


def read_prompt(prompt: str | None) -> str:
    """The prompt of the option, or of standard input for "-" and for none at all."""
    if prompt is not None and prompt != "-":
        return check_text(prompt, "--prompt")
    nothing = ConfigurationError("there is no prompt", hint="give --prompt TEXT, or write it to standard input")
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise nothing
    try:
        text = check_text(sys.stdin.read(), "standard input")
    except UnicodeDecodeError:
        raise _not_text("standard input") from None
    if prompt is None and not text:
        raise nothing
    return text


def read_address(text: str) -> str:
    """The address of a running pipeline, which may be written without `tcp://`; raises when it can be none."""
    address = text if "://" in text else f"tcp://{text}"
    found = ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise ConfigurationError(
            f"{text} is no address of a pipeline", hint="an address reads tcp://HOST:PORT, for example 10.0.0.1:5700"
        )
    host = found["host"].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"the host {host} is not known here: {error}") from None
    return address


def check_text(text: str, origin: str) -> str:
    """`text` itself; raises when it stands for bytes that are no text (Python reads those as lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_text(origin) from None
    return text


def _not_text(origin: str) -> RequestError:
    return RequestError(f"{origin} is not UTF-8 text", hint="a prompt is text; bytes of another kind cannot be read")
