"""Messages <-> frames, the only place that knows their layout. `docs/protocol.md` is the authority.

    frame 0      msgpack map {"v": version, "kind": name, "body": {field: value}, "tensors": [[dtype, shape], ...]}
    frame 1..n   the bytes of tensor 1..n

Knows no socket. Whatever bytes arrive, `decode` returns a valid envelope or raises a `WireError`, and allocates no more
than a small multiple of what arrived. Imports torch only when a message has tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

from flowspec.errors import InvariantViolation, MalformedMessage, OversizeMessage, VersionMismatch
from flowspec.wire import messages
from flowspec.wire.codec import MAX_ITEMS, Codec, codec_of
from flowspec.wire.messages import PROTOCOL_VERSION, Message
from flowspec.wire.tensors import buffer_of, check_size, describe, plain_specs, spec_from_plain, tensor_from

if TYPE_CHECKING:
    from torch import Tensor

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)

HEADER_KEYS = {"v", "kind", "body", "tensors"}


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """The most that one message may hold; both sides check."""

    frames: int = 9
    """Header and tensors."""
    header_bytes: int = 4 * 2**20
    tensor_bytes: int = 64 * 2**20
    """Of one tensor."""
    elements: int = 2**25
    """Of one tensor."""

    @property
    def frame_bytes(self) -> int:
        """The largest frame, for the socket option that refuses larger ones before they are read."""
        return max(self.header_bytes, self.tensor_bytes)


DEFAULT_LIMITS = FrameLimits()


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with the tensors that came beside it."""

    message: Message
    tensors: tuple[Tensor, ...] = ()


# ---- message types ---------------------------------------------------------------------------------------------------

_types: dict[str, tuple[type[Message], Codec]] = {}


def register(message_type: type[M]) -> type[M]:
    """Let a message type travel: a frozen dataclass below `Message` with a `kind` that no other type has.

    Usable as a decorator. Both ends must register it; to register the same type twice is harmless.
    """
    kind = message_type.kind
    if not kind or not isinstance(kind, str):
        raise InvariantViolation(f"{message_type.__name__} has no kind")
    if kind in _types and _types[kind][0] is not message_type:
        raise InvariantViolation(f"kind {kind!r} belongs to {_types[kind][0].__name__} already")
    _types[kind] = (message_type, codec_of(message_type))
    return message_type


def message_types() -> dict[str, type[Message]]:
    """All registered types by kind."""
    return {kind: message_type for kind, (message_type, _) in _types.items()}


for _each in vars(messages).values():
    if isinstance(_each, type) and issubclass(_each, Message) and _each is not Message:
        register(_each)


# ---- encode ----------------------------------------------------------------------------------------------------------


def encode(
    message: Message, tensors: Sequence[Tensor] = (), limits: FrameLimits = DEFAULT_LIMITS
) -> list[bytes | memoryview]:
    """The frames of a message. Tensors are not copied: the caller gives them up. Raises `WireError`."""
    known = _types.get(message.kind)
    if known is None or known[0] is not type(message):
        raise MalformedMessage(f"{type(message).__name__} is not a registered message type")
    if 1 + len(tensors) > limits.frames:
        raise OversizeMessage(f"{len(tensors)} tensors beside {message.kind}, at most {limits.frames - 1} travel")
    specs = [describe(tensor) for tensor in tensors]
    header = {
        "v": PROTOCOL_VERSION,
        "kind": message.kind,
        "body": known[1].encode(message),
        "tensors": plain_specs(specs),
    }
    try:
        frames: list[bytes | memoryview] = [msgpack.packb(header)]
    except ValueError as error:
        raise MalformedMessage(f"{message.kind}: {error}") from None
    if len(frames[0]) > limits.header_bytes:
        raise OversizeMessage(
            f"a {message.kind} header of {len(frames[0])} bytes, at most {limits.header_bytes} travel"
        )
    for spec, tensor in zip(specs, tensors, strict=True):
        check_size(spec, spec.nbytes, max_elements=limits.elements, max_bytes=limits.tensor_bytes)
        frames.append(buffer_of(tensor))
    return frames


# ---- decode ----------------------------------------------------------------------------------------------------------


def decode(frames: Sequence[Buffer], limits: FrameLimits = DEFAULT_LIMITS) -> Envelope:
    """The message in these frames; raises `MalformedMessage`, `OversizeMessage` or `VersionMismatch`.

    Large writable buffers become the memory of the tensors; the caller must not use them again.
    """
    if not frames:
        raise MalformedMessage("a message without frames")
    if len(frames) > limits.frames:
        raise OversizeMessage(f"a message of {len(frames)} frames, at most {limits.frames} are allowed")
    header = _read_header(frames[0], limits)
    known = _types.get(header["kind"])
    if known is None:
        raise MalformedMessage(f"unknown kind of message {header['kind'][:40]!r}")
    specs = [spec_from_plain(plain) for plain in header["tensors"]]
    if len(specs) != len(frames) - 1:
        raise MalformedMessage(f"{known[0].kind}: {len(specs)} tensors described, {len(frames) - 1} sent")
    for spec, frame in zip(specs, frames[1:], strict=True):
        size = memoryview(frame).nbytes
        check_size(spec, size, max_elements=limits.elements, max_bytes=limits.tensor_bytes)
    message = known[1].decode(header["body"])
    if not specs:
        return Envelope(message)
    return Envelope(message, tuple(map(tensor_from, specs, frames[1:])))


def _read_header(frame: Buffer, limits: FrameLimits) -> dict[str, Any]:
    size = memoryview(frame).nbytes
    if size > limits.header_bytes:
        raise OversizeMessage(f"a header of {size} bytes, at most {limits.header_bytes} are allowed")
    try:
        # An array's claimed length is allocated before its items are read, once per level of nesting (at most 1024):
        # the cap keeps that below 32 MiB however large the header is. Columns are byte strings and need no arrays.
        header = msgpack.unpackb(frame, max_array_len=min(MAX_ITEMS, size), max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"the header is no msgpack: {str(error)[:80] or type(error).__name__}") from None
    if type(header) is not dict or type(header.get("v")) is not int:
        raise MalformedMessage("the header is no map with a version")
    if header["v"] != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the peer speaks protocol version {header['v']}, this node version {PROTOCOL_VERSION}",
            hint="install the same release of flowspec on all nodes",
        )
    if header.keys() != HEADER_KEYS or type(header["kind"]) is not str or type(header["tensors"]) is not list:
        raise MalformedMessage("the header has not the keys v, kind, body and tensors")
    return header
