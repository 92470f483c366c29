"""Message dataclass <-> plain msgpack values, compiled once per type from its type hints.

Every field is checked in both directions, so a wrong value is found where it is made and refused where it arrives:
an int is an int (no bool) of 64 bits, a float is finite (an int will do), a name is short, a dataclass has all its
fields and no other.
Knows neither msgpack nor frames nor tensors: what comes out is dict, list, str, bytes, int, float, bool and None.

Columns (`tuple[int, ...]`, `tuple[float, ...]`, `tuple[bool, ...]`) become one byte string each (little-endian int64,
IEEE double, one byte per bool): packed and checked at C speed, and no count in a header can ask for more memory
than the bytes that came with it.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import types
import typing
from collections.abc import Callable
from typing import Any

from flowspec.errors import InvariantViolation, MalformedMessage
from flowspec.wire.messages import Chunk, DraftTokens, TimeCurve

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
MAX_ITEMS = 4096
"""Most items of a list of strings or of nested values."""
MAX_NAME = 256
"""Most characters of a name: whoever hears one may repeat it, beside others, in messages of its own."""

NAMES = frozenset(
    {
        *("node", "spare", "place", "sender", "host", "incarnation", "request", "session", "channel"),
        *("fingerprint", "tokenizer", "dtype"),
    }
)
"""Fields that hold a name."""

Convert = Callable[[Any], Any]

EQUAL_COLUMNS: dict[type, tuple[str, ...]] = {
    DraftTokens: ("serials", "parents", "tokens"),
    TimeCurve: ("tokens", "seconds"),
    Chunk: ("token_ids", "drafted"),
}
"""Fields that must have one length."""


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """Both directions of one type; each raises `MalformedMessage` naming type and field."""

    encode: Convert
    decode: Convert
    unchanged: str = "False"
    """Python source of a condition on `{v}` under which both directions return it as it is. Evaluated left to right,
    its first mention of the value is written `{first}`: the value may be assigned to a name there."""


_codecs: dict[type, Codec] = {}


def codec_of(cls: type) -> Codec:
    """The codec of a dataclass. Raises `InvariantViolation` when a field has a type that does not go on the wire."""
    if cls not in _codecs:
        _codecs[cls] = _compile_dataclass(cls)
    return _codecs[cls]


def _compile_dataclass(cls: type) -> Codec:
    if not dataclasses.is_dataclass(cls):
        raise InvariantViolation(f"{cls.__name__} is no dataclass and cannot be put on the wire")
    hints = typing.get_type_hints(cls)
    fields = [(f.name, _compile(hints[f.name], f"{cls.__name__}.{f.name}")) for f in dataclasses.fields(cls)]
    names = frozenset(name for name, _ in fields)
    equal = EQUAL_COLUMNS.get(cls, ())
    label = cls.__name__

    def refuse(value: Any) -> None:
        raise _wrong(label, label, value)

    def refuse_columns(value: Any) -> None:
        lengths = ", ".join(f"{name} {len(getattr(value, name))}" for name in equal)
        raise MalformedMessage(f"{label}: columns of unequal length: {lengths}")

    def refuse_plain(plain: Any) -> None:
        if type(plain) is not dict:
            raise _wrong(label, "a map", plain)
        raise MalformedMessage(_field_difference(label, names, plain))

    # Straight-line code: a call per field would take twice the time of all else that a message needs. Only names of
    # fields and the conditions of this module get into the source.
    encoded = [f"{name!r}: {_step(codec, 'encode', i, f'value.{name}')}" for i, (name, codec) in enumerate(fields)]
    decoded = [_step(codec, "decode", i, f"plain[{name!r}]") for i, (name, codec) in enumerate(fields)]
    lengths = " == ".join(f"len(value.{name})" for name in equal)
    check_columns = f"    if not {lengths}: refuse_columns(value)" if equal else ""
    lines = (
        "def encode(value):",
        "    if type(value) is not cls: refuse(value)",
        check_columns,
        f"    return {{{', '.join(encoded)}}}",
        "def decode(plain):",
        "    if type(plain) is not dict or plain.keys() != names: refuse_plain(plain)",
        f"    value = cls({', '.join(decoded)})",
        check_columns,
        "    return value",
    )
    scope: dict[str, Any] = {
        "cls": cls,
        "names": names,
        "isfinite": math.isfinite,
        "refuse": refuse,
        "refuse_columns": refuse_columns,
        "refuse_plain": refuse_plain,
    }
    for i, (_, codec) in enumerate(fields):
        scope[f"encode_{i}"], scope[f"decode_{i}"] = codec.encode, codec.decode
    exec(compile("\n".join(lines), f"<codec of {label}>", "exec"), scope)
    return Codec(scope["encode"], scope["decode"])


def _step(codec: Codec, direction: str, index: int, source: str) -> str:
    """An expression that converts one field, whose value `source` reads."""
    if codec.unchanged == "False":
        return f"{direction}_{index}({source})"
    return f"v if {codec.unchanged.format(first=f'(v := {source})', v='v')} else {direction}_{index}(v)"


def _field_difference(label: str, names: frozenset[str], plain: dict[Any, Any]) -> str:
    missing = sorted(names - plain.keys())
    unknown = sorted(ascii(key)[:40] for key in plain.keys() - names)[:8]
    parts = [f"{word} {', '.join(found)}" for word, found in (("missing", missing), ("unknown", unknown)) if found]
    return f"{label}: fields {'; '.join(parts)}"


def _wrong(where: str, wanted: str, value: object) -> MalformedMessage:
    return MalformedMessage(f"{where}: expected {wanted}, got {type(value).__name__}")


# ---- field types -----------------------------------------------------------------------------------------------------


def _compile(hint: Any, where: str) -> Codec:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        return _both(_int(where), f"type({{first}}) is int and {INT_MIN} <= {{v}} <= {INT_MAX}")
    if hint is float:
        return _both(_float(where), "type({first}) is float and isfinite({v})")
    if hint is str and where.rpartition(".")[2] in NAMES:
        return _both(_name(where), f"type({{first}}) is str and len({{v}}) <= {MAX_NAME}")
    if hint in (bool, str):
        return _both(_exactly(hint, where), f"type({{first}}) is {hint.__name__}")
    if origin in (types.UnionType, typing.Union) and len(arguments) == 2 and type(None) in arguments:
        inner = _compile(next(a for a in arguments if a is not type(None)), where)
        unchanged = "{first} is None or " + inner.unchanged.replace("{first}", "{v}")
        return Codec(_or_none(inner.encode), _or_none(inner.decode), unchanged)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if arguments[0] in _COLUMNS:
            return _column(arguments[0], where)
        return _sequence(_compile(arguments[0], where), where)
    if origin is tuple and arguments and Ellipsis not in arguments:
        return _fixed([_compile(a, where) for a in arguments], where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return codec_of(hint)
    raise InvariantViolation(f"{where}: {hint} does not go on the wire")


def _both(check: Convert, unchanged: str) -> Codec:
    return Codec(check, check, unchanged)


def _int(where: str) -> Convert:
    def check(value: Any) -> int:
        if type(value) is not int:
            raise _wrong(where, "int", value)
        if not INT_MIN <= value <= INT_MAX:
            raise MalformedMessage(f"{where}: an integer of more than 64 bits")
        return value

    return check


def _float(where: str) -> Convert:
    def check(value: Any) -> float:
        if type(value) is int and INT_MIN <= value <= INT_MAX:
            return float(value)
        if type(value) is not float:
            raise _wrong(where, "float", value)
        if not math.isfinite(value):
            raise MalformedMessage(f"{where}: {value} is not a finite number")
        return value

    return check


def _exactly(kind: type, where: str) -> Convert:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(where, kind.__name__, value)
        return value

    return check


def _name(where: str) -> Convert:
    exactly = _exactly(str, where)

    def check(value: Any) -> Any:
        if len(exactly(value)) > MAX_NAME:
            raise MalformedMessage(f"{where}: a name of {len(value)} characters, at most {MAX_NAME} fit")
        return value

    return check


def _or_none(inner: Convert) -> Convert:
    return lambda value: None if value is None else inner(value)


def _sequence(item: Codec, where: str) -> Codec:
    def encode(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise _wrong(where, "tuple", value)
        if len(value) > MAX_ITEMS:
            raise MalformedMessage(f"{where}: {len(value)} items, at most {MAX_ITEMS} fit a message")
        return [item.encode(each) for each in value]

    def decode(plain: Any) -> tuple[Any, ...]:
        if type(plain) is not list:
            raise _wrong(where, "array", plain)
        return tuple([item.decode(each) for each in plain])

    return Codec(encode, decode)


def _fixed(items: list[Codec], where: str) -> Codec:
    def encode(value: Any) -> list[Any]:
        if type(value) is not tuple or len(value) != len(items):
            raise _wrong(where, f"tuple of {len(items)}", value)
        return [item.encode(each) for item, each in zip(items, value, strict=True)]

    def decode(plain: Any) -> tuple[Any, ...]:
        if type(plain) is not list or len(plain) != len(items):
            raise _wrong(where, f"array of {len(items)}", plain)
        return tuple([item.decode(each) for item, each in zip(items, plain, strict=True)])

    return Codec(encode, decode)


# ---- columns ---------------------------------------------------------------------------------------------------------

_COLUMNS: dict[type, tuple[str, int]] = {int: ("q", 8), float: ("d", 8), bool: ("?", 1)}


def _column(kind: type, where: str) -> Codec:
    letter, size = _COLUMNS[kind]
    allowed = {float, int} if kind is float else {kind}

    def encode(value: Any) -> bytes:
        if type(value) is not tuple:
            raise _wrong(where, "tuple", value)
        if not allowed.issuperset(map(type, value)):
            raise _wrong(where, kind.__name__, next(v for v in value if type(v) not in allowed))
        try:
            packed = struct.pack(f"<{len(value)}{letter}", *value)
        except (struct.error, OverflowError) as error:
            raise MalformedMessage(f"{where}: {error}") from None
        if kind is float and not all(map(math.isfinite, value)):
            raise MalformedMessage(f"{where}: not all numbers are finite")
        return packed

    def decode(plain: Any) -> tuple[Any, ...]:
        if type(plain) is not bytes:
            raise _wrong(where, "a column (bin)", plain)
        if len(plain) % size:
            raise MalformedMessage(f"{where}: a column of {len(plain)} bytes is no multiple of {size}")
        if kind is bool and plain.translate(None, b"\x00\x01"):
            raise MalformedMessage(f"{where}: a byte that is neither 0 nor 1")
        values = struct.unpack(f"<{len(plain) // size}{letter}", plain)
        if kind is float and not all(map(math.isfinite, values)):
            raise MalformedMessage(f"{where}: not all numbers are finite")
        return values

    return Codec(encode, decode)
