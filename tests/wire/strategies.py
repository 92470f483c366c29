"""Hypothesis strategies for every message type, made from the same type hints as the codec, but not by it."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from hypothesis import strategies as st

from flowspec.wire.messages import Chunk, DraftTokens, Message, TimeCurve

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=12)


def columns(cls: type, *elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`cls` from columns of one length."""
    rows = st.lists(st.tuples(*elements), max_size=6)
    return rows.map(lambda rows: tuple(zip(*rows, strict=True)) if rows else ((),) * len(elements)).map(
        lambda made: cls(*made)
    )


def chunks() -> st.SearchStrategy[Chunk]:
    rows = st.lists(st.tuples(INTS, st.booleans()), max_size=6)
    return st.builds(
        lambda request, offset, text, rows: Chunk(
            request, offset, text, tuple(token for token, _ in rows), tuple(drafted for _, drafted in rows)
        ),
        TEXT,
        INTS,
        TEXT,
        rows,
    )


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    simple = {int: INTS, float: FLOATS, bool: st.booleans(), str: TEXT}
    if hint in simple:
        return simple[hint]
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if a is type(None) else values(a) for a in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    return messages(hint)


def messages(cls: type) -> st.SearchStrategy[Any]:
    """Any valid value of a message type, or of a dataclass inside one."""
    if cls is DraftTokens:
        return columns(DraftTokens, INTS, INTS, INTS)
    if cls is TimeCurve:
        return columns(TimeCurve, INTS, FLOATS)
    if cls is Chunk:
        return chunks()
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in dataclasses.fields(cls)})


def message_of(types_by_kind: dict[str, type[Message]]) -> st.SearchStrategy[Message]:
    """Any valid message of any of these types."""
    return st.sampled_from(sorted(types_by_kind)).flatmap(lambda kind: messages(types_by_kind[kind]))
