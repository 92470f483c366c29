"""Every message type goes to plain values and back unchanged; everything else is refused by name."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import InvariantViolation, MalformedMessage
from flowspec.wire.codec import EQUAL_COLUMNS, MAX_NAME, codec_of
from flowspec.wire.frames import message_types
from flowspec.wire.messages import (
    Chunk,
    Credit,
    DraftTokens,
    Heartbeat,
    Message,
    RosterEntry,
    Segment,
    StatusQuery,
    TimeCurve,
)
from tests.wire.strategies import messages

KINDS = sorted(message_types())
DRAFT = DraftTokens((7, 8), (6, 7), (100, 101))
SEGMENT = Segment("s", 0, 3, 9, 5, DRAFT, (RosterEntry("s", 0, 4, 11), RosterEntry("t", 2)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_message_type_comes_back_equal(kind: str, data: st.DataObject) -> None:
    message = data.draw(messages(message_types()[kind]))
    codec = codec_of(type(message))
    assert codec.decode(codec.encode(message)) == message


def test_every_kind_is_its_types_own() -> None:
    assert len({cls.kind for cls in message_types().values()}) == len(message_types()) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_unknown_field_is_refused_by_name(kind: str) -> None:
    cls = message_types()[kind]
    plain = {field.name: 0 for field in dataclasses.fields(cls)}
    with pytest.raises(MalformedMessage, match=f"{cls.__name__}: fields unknown 'surplus'"):
        codec_of(cls).decode({**plain, "surplus": 1})
    first = next(iter(plain))
    with pytest.raises(MalformedMessage, match=f"{cls.__name__}: fields missing .*{first}"):
        codec_of(cls).decode({name: value for name, value in plain.items() if name != first})


WRONG_VALUES: dict[Any, list[Any]] = {
    int: [True, 1.0, "1", None, 2**63, -(2**63) - 1, b"1"],
    float: [True, "1", None, float("nan"), float("inf"), 2**70],
    bool: [0, 1, None, "true"],
    str: [b"text", 1, None],
    tuple[int, ...]: [[1, 2], b"1234567", "12345678", None, 3],
    tuple[float, ...]: [[1.0], b"1234567", None, b"\x00\x00\x00\x00\x00\x00\xf0\x7f"],
    tuple[bool, ...]: [[True], b"\x02", None],
    tuple[str, ...]: [b"a", "a", [1], None],
    tuple[tuple[str, str], ...]: [[["a"]], [["a", "b", "c"]], [["a", 1]], ["ab"]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_the_wrong_type_is_refused_with_the_fields_name(kind: str) -> None:
    cls = message_types()[kind]
    good = codec_of(cls).encode(sample(cls))
    for name, hint in typing.get_type_hints(cls).items():
        for wrong in WRONG_VALUES.get(hint, []):
            with pytest.raises(MalformedMessage, match=f"{cls.__name__}.{name}"):
                codec_of(cls).decode({**good, name: wrong})


def sample(cls: type) -> Any:
    """A value with the simplest content of every field."""
    simple = {int: 1, float: 0.5, bool: True, str: "a"}
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) is ClassVar:
            continue
        if hint in simple:
            fields[name] = simple[hint]
        elif typing.get_origin(hint) is tuple:
            fields[name] = ()
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            fields[name] = sample(hint)
        else:
            fields[name] = None
    return cls(**fields)


def test_a_float_accepts_an_int_and_becomes_a_float() -> None:
    beat = dataclasses.replace(sample(Heartbeat), busy_seconds=2)
    decoded = codec_of(Heartbeat).decode(codec_of(Heartbeat).encode(beat))
    assert type(decoded.busy_seconds) is float
    curve = codec_of(TimeCurve).decode(codec_of(TimeCurve).encode(TimeCurve((1,), (2,))))
    assert curve.seconds == (2.0,)
    assert type(curve.seconds[0]) is float


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (dataclasses.replace(SEGMENT, number=True), "Segment.number"),
        (dataclasses.replace(SEGMENT, ticket=2**63), "Segment.ticket"),
        (dataclasses.replace(SEGMENT, session=None), "Segment.session"),  # type: ignore[arg-type]
        (dataclasses.replace(SEGMENT, roster=[]), "Segment.roster"),  # type: ignore[arg-type]
        (dataclasses.replace(SEGMENT, draft=DraftTokens((1,), (0,), (True,))), "DraftTokens.tokens"),
        (dataclasses.replace(SEGMENT, draft=DraftTokens((1,), (0,), (2**63,))), "DraftTokens.tokens"),
        (dataclasses.replace(SEGMENT, draft=DraftTokens((1,), (0,), (1.0,))), "DraftTokens.tokens"),  # type: ignore[arg-type]
        (dataclasses.replace(SEGMENT, roster=(SEGMENT,)), "RosterEntry"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_found_where_it_is_made(message: Segment, place: str) -> None:
    with pytest.raises(MalformedMessage, match=place):
        codec_of(Segment).encode(message)


def test_columns_of_unequal_length_are_refused_both_ways() -> None:
    for cls, names in EQUAL_COLUMNS.items():
        good = codec_of(cls).encode(sample(cls))
        one = b"\x01" if cls is Chunk and names[0] == "drafted" else b"\x01" * 8
        with pytest.raises(MalformedMessage, match="unequal length"):
            codec_of(cls).decode({**good, names[0]: one})
    with pytest.raises(MalformedMessage, match="serials 2, parents 1, tokens 2"):
        codec_of(DraftTokens).encode(DraftTokens((1, 2), (0,), (5, 6)))


def test_a_plain_value_of_another_kind_is_refused() -> None:
    for plain in (None, 3, "text", b"bytes", [], [1, 2]):
        with pytest.raises(MalformedMessage, match="Credit: expected a map"):
            codec_of(Credit).decode(plain)
    with pytest.raises(MalformedMessage, match="expected Credit"):
        codec_of(Credit).encode(SEGMENT)


def test_more_items_than_fit_are_refused_by_the_sender() -> None:
    entry = RosterEntry("s", 0)
    with pytest.raises(MalformedMessage, match="4097 items"):
        codec_of(Segment).encode(dataclasses.replace(SEGMENT, roster=(entry,) * 4097))


@dataclass(frozen=True, slots=True)
class WithBytes(Message):
    kind: ClassVar[str] = "with-bytes"
    content: bytes


@dataclass(frozen=True, slots=True)
class WithMap(Message):
    kind: ClassVar[str] = "with-map"
    content: dict[str, int]


@pytest.mark.parametrize("cls", [WithBytes, WithMap, int])
def test_a_type_that_cannot_travel_is_refused_when_it_is_registered(cls: type) -> None:
    with pytest.raises(InvariantViolation, match=r"does not go on the wire|cannot be put on the wire"):
        codec_of(cls)


def test_a_name_that_is_none_is_refused_both_ways() -> None:
    codec = codec_of(StatusQuery)
    plain = codec.encode(StatusQuery("x" * MAX_NAME))
    with pytest.raises(MalformedMessage, match=r"StatusQuery\.request: a name of 257 characters"):
        codec.encode(StatusQuery("x" * (MAX_NAME + 1)))
    with pytest.raises(MalformedMessage, match=r"StatusQuery\.request: a name of 257 characters"):
        codec.decode(plain | {"request": "x" * (MAX_NAME + 1)})
