"""Frames: what encode makes decode reads, and whatever else arrives is a `WireError` that costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowspec.errors import InvariantViolation, MalformedMessage, OversizeMessage, VersionMismatch, WireError
from flowspec.wire import frames as frames_module
from flowspec.wire.frames import Envelope, FrameLimits, decode, encode, message_types, register
from flowspec.wire.messages import PROTOCOL_VERSION, Close, Credit, DraftTokens, Message, RosterEntry, Segment, Shutdown
from flowspec.wire.tensors import ITEM_BYTES
from tests.wire.strategies import message_of, messages

SEGMENT = Segment("s", 0, 3, 9, 5, DraftTokens((7, 8), (6, 7), (100, 101)), (RosterEntry("s", 0, 4, 11, 6),))
HIDDEN = torch.arange(8.0).reshape(2, 4).to(torch.bfloat16)


def header(**changes: Any) -> bytes:
    body = {"session": "s", "epoch": 1}
    whole = {"v": PROTOCOL_VERSION, "kind": "close", "body": body, "tensors": []} | changes
    return bytes(msgpack.packb({key: value for key, value in whole.items() if value is not ...}))


@given(message=message_of(message_types()), dtypes=st.lists(st.sampled_from(sorted(ITEM_BYTES)), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_message_with_any_tensors_comes_back_equal(message: Message, dtypes: list[str]) -> None:
    tensors = [torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)) for dtype in dtypes]
    envelope = decode([bytes(frame) for frame in encode(message, tensors)])
    assert envelope.message == message
    assert type(envelope.message) is type(message)
    assert [tensor.dtype for tensor in envelope.tensors] == [tensor.dtype for tensor in tensors]
    assert all(torch.equal(*pair) for pair in zip(envelope.tensors, tensors, strict=True))


def test_the_layout_is_the_documented_one() -> None:
    head, body = encode(SEGMENT, [HIDDEN])
    assert msgpack.unpackb(head) == {
        "v": 4,
        "kind": "segment",
        "body": {
            "session": "s",
            "epoch": 0,
            "number": 3,
            "ticket": 9,
            "decree": 5,
            "draft": {
                "serials": bytes([7] + [0] * 7 + [8] + [0] * 7),
                "parents": bytes([6] + [0] * 7 + [7] + [0] * 7),
                "tokens": bytes([100] + [0] * 7 + [101] + [0] * 7),
            },
            "roster": [{"session": "s", "epoch": 0, "frontier": 4, "token": 11, "features": 6}],
            "carried_bytes": 0,
        },
        "tensors": [["bfloat16", [2, 4]]],
    }
    assert bytes(body) == bytes.fromhex("0000803f004040408040a040c040e040")


def test_a_sent_tensor_is_not_copied() -> None:
    tensor = torch.zeros(4)
    frame = encode(Close("s", 0), [tensor])[1]
    tensor[0] = 1.0
    assert any(frame)


# ---- what is refused -------------------------------------------------------------------------------------------------

MALFORMED = {
    "no frames": [],
    "an empty header": [b""],
    "no map": [msgpack.packb([1, 2])],
    "no version": [header(v=...)],
    "a version that is no integer": [header(v="1")],
    "a version that is a bool": [header(v=True)],
    "no kind": [header(kind=...)],
    "a kind that is no string": [header(kind=7)],
    "an unknown kind": [header(kind="unheard-of")],
    "no body": [header(body=...)],
    "a body that is a list": [header(body=[])],
    "an unknown key": [header(surplus=1)],
    "tensors that are no list": [header(tensors={})],
    "a tensor without a frame": [header(tensors=[["float32", [1]]])],
    "a frame without a tensor": [header(), b"1234"],
    "a frame of the wrong size": [header(tensors=[["float32", [2]]]), b"1234"],
    "an unknown dtype": [header(tensors=[["void", [4]]]), b"1234"],
    "bytes after the header": [header() + b"\x00"],
    "half a header": [header()[:-3]],
    "a key that is no string": [msgpack.packb({1: 2, "v": 1})],
    "an extension type": [header(body=msgpack.ExtType(5, b"data"))],
    "a timestamp": [header(body=msgpack.Timestamp(1, 2))],
    "a string that is no UTF-8": [header(kind="xx").replace(b"xx", b"\xff\xfe")],
    "deep nesting": [b"\x91" * 5000],
    "an array of a claimed 2**32 - 1 items": [b"\xdd\xff\xff\xff\xff"],
    "a map of a claimed 2**32 - 1 items": [b"\xdf\xff\xff\xff\xff"],
    "a string of a claimed 2**32 - 1 bytes": [b"\xdb\xff\xff\xff\xff"],
    "bytes of a claimed 2**32 - 1 bytes": [b"\xc6\xff\xff\xff\xff"],
}


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_refused(bad: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode(bad)


@pytest.mark.parametrize("version", [0, 1, PROTOCOL_VERSION + 1, -1, 2**63, 2**64 - 1])
def test_another_version_is_refused_before_anything_else_is_read(version: int) -> None:
    with pytest.raises(VersionMismatch, match=f"version {version}, this node version {PROTOCOL_VERSION}") as caught:
        decode([msgpack.packb({"v": version, "new": [1, 2, 3]})])
    assert "same release" in str(caught.value)


LIMITS = FrameLimits(frames=3, header_bytes=200, tensor_bytes=32, elements=6)


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(1)] * 3,
        [torch.zeros(7, dtype=torch.int8)],
        [torch.zeros(5, dtype=torch.float64)],
    ],
    ids=["too many frames", "too many elements", "too many bytes"],
)
def test_an_oversize_message_is_refused_by_both_sides(tensors: list[torch.Tensor]) -> None:
    frames = encode(Close("s", 0), tensors)
    with pytest.raises(OversizeMessage):
        decode(frames, LIMITS)
    with pytest.raises(OversizeMessage):
        encode(Close("s", 0), tensors, LIMITS)


def test_an_oversize_header_is_refused_by_both_sides() -> None:
    long = Shutdown("s" * 300)
    with pytest.raises(OversizeMessage, match="header"):
        encode(long, (), LIMITS)
    with pytest.raises(OversizeMessage, match="header"):
        decode(encode(long), LIMITS)


def test_the_socket_limit_covers_every_frame() -> None:
    assert LIMITS.frame_bytes == 200
    assert FrameLimits().frame_bytes == 64 * 2**20


def test_text_that_is_no_unicode_is_refused_by_the_sender() -> None:
    with pytest.raises(MalformedMessage):
        encode(Close("\ud800", 0))


@given(frames=st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=150, deadline=None)
def test_random_bytes_raise_nothing_but_wire_errors(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_messages_raise_nothing_but_wire_errors(data: st.DataObject) -> None:
    message = data.draw(st.one_of(st.just(SEGMENT), messages(Segment), message_of(message_types())))
    frames = [bytearray(frame) for frame in encode(message, [HIDDEN])]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, 1))]
        place = data.draw(st.integers(0, max(0, len(frame) - 1)))
        kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "change" and frame:
            frame[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del frame[place:]
        else:
            frame[place:place] = data.draw(st.binary(max_size=9))
    try:
        envelope = decode(frames)
    except WireError:
        return
    encode(envelope.message, envelope.tensors)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_well_formed_nonsense_raises_nothing_but_wire_errors(data: st.DataObject) -> None:
    """Right keys, any plain value somewhere inside: what a faulty implementation would send."""
    head = msgpack.unpackb(encode(data.draw(message_of(message_types())), [HIDDEN])[0])
    place = data.draw(st.sampled_from(["kind", "tensors", "body", "field"]))
    if place == "field" and head["body"]:
        head["body"][data.draw(st.sampled_from(sorted(head["body"])))] = data.draw(plain_values)
    else:
        head["body" if place == "field" else place] = data.draw(plain_values)
    try:
        decode([msgpack.packb(head), bytes(16)])
    except WireError:
        return


def test_claimed_sizes_allocate_nothing() -> None:
    """Arrays that claim as many items as any header could hold, inside each other, in a large header."""
    size = 2**20
    bomb = b"\xdd" + (size - 1).to_bytes(4, "big")
    smaller = b"\xdd" + (4000).to_bytes(4, "big")
    attacks = [
        bomb * 1000 + bytes(size),
        smaller * 1000 + bytes(size),
        b"\xdf\x00\x0f\xff\xff" + b"\xa1k" + smaller * 900 + bytes(size),
        header(tensors=[["float32", [2**40]]]) + b"",
    ]
    for attack in attacks:
        tracemalloc.start()
        try:
            with pytest.raises(WireError):
                decode([attack, b"1234"])
            assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
        finally:
            tracemalloc.stop()


# ---- types of one's own ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weather(Message):
    kind: ClassVar[str] = "test-weather"
    degrees: float
    places: tuple[str, ...] = ()


def test_a_registered_type_travels_and_a_taken_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "_types", dict(frames_module._types))
    with pytest.raises(MalformedMessage, match="not a registered"):
        encode(Weather(1.5))
    assert register(Weather) is register(Weather) is Weather
    assert decode(encode(Weather(1.5, ("here",)))) == Envelope(Weather(1.5, ("here",)))

    @dataclass(frozen=True)
    class Impostor(Message):
        kind: ClassVar[str] = Credit.kind

    with pytest.raises(InvariantViolation, match="belongs to Credit"):
        register(Impostor)
    with pytest.raises(MalformedMessage, match="not a registered"):
        encode(Impostor())
    with pytest.raises(InvariantViolation, match="no kind"):
        register(Message)


def test_messages_without_tensors_leave_torch_and_numpy_unloaded() -> None:
    program = (
        "import sys; from flowspec.wire.frames import encode, decode; from flowspec.wire.messages import Close; "
        "decode(encode(Close('s', 0))); "
        "raise SystemExit(bool({'torch', 'numpy', 'zmq', 'asyncio'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
