"""Options that take several values at once: `--temperatures 0 1` as well as `0,1` and the option given twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from flowspec.errors import ConfigurationError


class ManyValues(TyperCommand):
    """A command without arguments: what follows an option that may be repeated are further values of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeated = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, spread(args, repeated))


def spread(arguments: Sequence[str], repeated: set[str]) -> list[str]:
    """`--x a b` as `--x a --x b` for every option in `repeated`."""
    found: list[str] = []
    current: str | None = None
    values = 0
    for argument in arguments:
        if argument.startswith("--"):
            current, values = (argument if argument in repeated else None), 0
        elif current is not None:
            values += 1
            if values > 1:
                found.append(current)
        found.append(argument)
    return found


def separate(given: Sequence[str] | None) -> list[str]:
    """The values of a repeated option, each of which may be a list with commas."""
    return [value.strip() for text in given or () for value in text.split(",") if value.strip()]


def numbers(given: Sequence[str] | None, option: str) -> list[float]:
    """The same as numbers; raises `ConfigurationError` for what is none."""
    found = []
    for text in separate(given):
        try:
            found.append(float(text))
        except ValueError:
            raise ConfigurationError(f"{option}: {text!r} is no number") from None
    return found


def counts(given: Sequence[str] | None, option: str) -> list[int]:
    """The same as whole numbers from 1 on."""
    found = []
    for number in numbers(given, option):
        if not number.is_integer() or number < 1:
            raise ConfigurationError(f"{option}: {number:g} is no whole number from 1 on")
        found.append(int(number))
    return found
