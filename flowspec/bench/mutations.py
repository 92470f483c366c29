"""Inputs that nobody should send: random messages, broken bytes, claims that are too large, topologies in pieces.

Everything comes from one seeded generator, so that a campaign can be run again. Sends nothing and checks nothing.
"""

from __future__ import annotations

import dataclasses
import math
import random
import types
import typing
from typing import Any

import msgpack

from flowspec.wire.codec import EQUAL_COLUMNS, MAX_NAME
from flowspec.wire.frames import encode, message_types
from flowspec.wire.messages import PROTOCOL_VERSION, Message
from flowspec.wire.tensors import ITEM_BYTES

EDGES = (0, 1, -1, 2, 7, 255, 256, 4096, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63))
WORDS = ("", "a", "demo", "stage-1", "draft", "s" * MAX_NAME, "\x00", "é", "../../x", "%s%n", "{}", "nan", "flowspec")
DTYPES = ("float32", "bfloat16", "int64", "uint8", "float128", "object", "", "float32 ", 7, None)
SCRAPS = (
    *("{", "}", "[", "]", ",", ":", "- ", "? ", "&a ", "*a ", "!!python/object:os.system ", "| ", "'", '"', "%", "#"),
    *("~", "<<: ", "\n", "\t", "\0", "---", "auto", "null", ".inf", "1e400", "0-7", "99999999999999999999", "true"),
    *("nodes", "name", "role", "host", "port", "keys", "layers", "limits", "stage", "draft", "emulate", "links"),
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(8)
)


class Mutator:
    """Draws inputs; the same seed, or source of decisions, draws the same ones."""

    def __init__(self, source: int | random.Random) -> None:
        self.random = random.Random(source) if isinstance(source, int) else source
        self._types = sorted(message_types().values(), key=lambda kind: kind.kind)
        self._corpus: list[bytes] = []

    # ---- messages ----------------------------------------------------------------------------------------------------

    def message(self, kinds: list[type[Message]] | None = None) -> Message:
        """A message that is valid as such, whatever it says."""
        found: Message = self.value(self.random.choice(kinds or self._types))
        return found

    def value(self, hint: Any) -> Any:
        """Any value that a field of this type may have."""
        draw = self.random
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is int:
            return draw.choice(EDGES) if draw.random() < 0.5 else draw.randint(-5, 400)
        if hint is float:
            return draw.choice((0.0, -1.0, 0.5, 1e308, 5e-324, draw.random()))
        if hint is bool:
            return draw.random() < 0.5
        if hint is str:
            return draw.choice(WORDS)
        if origin in (types.UnionType, typing.Union):
            return None if draw.random() < 0.4 else self.value(arguments[0])
        if origin is tuple and arguments[-1] is Ellipsis:
            return tuple(self.value(arguments[0]) for _ in range(draw.choice((0, 1, 1, 2, 3))))
        if origin is tuple:
            return tuple(self.value(each) for each in arguments)
        return self._record(hint)

    def _record(self, cls: type) -> Any:
        hints = typing.get_type_hints(cls)
        values = {each.name: self.value(hints[each.name]) for each in dataclasses.fields(cls)}
        equal = EQUAL_COLUMNS.get(cls, ())
        length = min((len(values[name]) for name in equal), default=0)
        return cls(**values | {name: values[name][:length] for name in equal})

    # ---- frames ------------------------------------------------------------------------------------------------------

    def frames(self) -> list[bytes]:
        """Frames of one multipart message, most of them no message."""
        draw = self.random
        way = draw.random()
        if way < 0.05 or not self._corpus:
            return [self._valid()]
        if way < 0.55:
            return [self._broken(draw.choice(self._corpus))]
        if way < 0.65:
            return [draw.randbytes(draw.choice((0, 1, 3, 17, 200)))]
        if way < 0.95:
            return self._claims(draw.choice(self._corpus))
        return [self._broken(draw.choice(self._corpus)) for _ in range(draw.choice((0, 2, 9, 10, 40)))]

    def _valid(self) -> bytes:
        header = bytes(encode(self.message())[0])
        if len(self._corpus) < 500:
            self._corpus.append(header)
        else:
            self._corpus[self.random.randrange(500)] = header
        return header

    def _broken(self, data: bytes) -> bytes:
        """A few bytes flipped, cut out, doubled or put in."""
        draw = self.random
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 4))):
            place = draw.randrange(len(changed) + 1)
            way = draw.randrange(5)
            if way == 0 and place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            elif way == 1:
                del changed[place : place + draw.randrange(1, 9)]
            elif way == 2:
                changed[place:place] = draw.randbytes(draw.randrange(1, 9))
            elif way == 3:
                changed[place:place] = changed[place : place + 40]
            else:
                del changed[place:]
        return bytes(changed)

    def sound(self) -> list[bytes]:
        """Frames of a message that is valid as such, most often with tensors."""
        draw = self.random
        plain: dict[str, Any] = msgpack.unpackb(self._valid())
        shapes = [[draw.choice((0, 1, 2, 5)) for _ in range(draw.randrange(4))] for _ in range(draw.randrange(4))]
        specs = [(draw.choice(list(ITEM_BYTES)), shape) for shape in shapes]
        plain["tensors"] = [[dtype, shape] for dtype, shape in specs]
        return [msgpack.packb(plain), *(draw.randbytes(ITEM_BYTES[dtype] * math.prod(shape)) for dtype, shape in specs)]

    def like(self, header: bytes) -> list[bytes]:
        """Frames of a message whose header is close to this one, whether that is a valid one or not."""
        try:
            plain = msgpack.unpackb(header)
        except (ValueError, msgpack.UnpackException):
            plain = None
        claims = isinstance(plain, dict) and isinstance(plain.get("body"), dict)
        return self._claims(header) if claims else [self._broken(header)]

    def _claims(self, header: bytes) -> list[bytes]:
        """This header, well formed, and with something in it that is not so: version, kind, shape, size, depth."""
        draw = self.random
        plain: dict[Any, Any] = msgpack.unpackb(header)
        way = draw.randrange(8)
        if way == 0:
            plain["v"] = draw.choice((PROTOCOL_VERSION + 1, -1, 0, 2**63, "3", None, True))
        elif way == 1:
            plain["kind"] = draw.choice((*WORDS, 7, None, []))
        elif way == 2:
            plain["tensors"] = [self._specification() for _ in range(draw.choice((1, 1, 2, 8, 9)))]
            sizes = (draw.choice((0, 4, 64, 1024)) for _ in plain["tensors"][: draw.choice((0, 1, 8))])
            return [msgpack.packb(plain), *map(bytes, sizes)]
        elif way == 3:
            plain["body"] = self._nested(draw.choice((3, 30, 500, 900)))
        elif way == 4 and plain["body"]:
            plain["body"][draw.choice(list(plain["body"]))] = self._odd()
        elif way == 5:
            plain["body"][draw.choice(WORDS)] = self._odd()
        elif way == 6 and plain["body"]:
            plain["body"].pop(draw.choice(list(plain["body"])))
        else:
            plain[draw.choice(WORDS)] = self._odd()
        return [msgpack.packb(plain)]

    def _specification(self) -> Any:
        draw = self.random
        shape = [draw.choice(EDGES) for _ in range(draw.choice((0, 1, 2, 8, 9)))]
        return draw.choice(([draw.choice(DTYPES), shape], [draw.choice(DTYPES)], shape, None, ["float32", "many"]))

    def _odd(self) -> Any:
        draw = self.random
        return draw.choice(
            (
                None,
                -1,
                2**63,
                1e308,
                float("nan"),
                "x" * 5000,
                b"",
                draw.randbytes(24),
                [],
                [[]] * 50,
                {},
                {"a": 1},
                True,
            )
        )

    def _nested(self, depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value] if self.random.random() < 0.5 else {"body": value}
        return value

    # ---- topologies --------------------------------------------------------------------------------------------------

    def topology(self, files: list[str]) -> str:
        """A topology file with pieces cut out, doubled and put in; now and then something else altogether."""
        draw = self.random
        way = draw.random()
        if way < 0.02:
            return BOMB
        if way < 0.10:
            return "[" * draw.choice((5, 50, 5000)) + draw.choice(("", "]" * 50))
        if way < 0.25:
            return " ".join(draw.choice(SCRAPS) for _ in range(draw.randrange(30)))
        text = draw.choice(files)
        for _ in range(draw.randrange(1, 4)):
            start = draw.randrange(len(text) + 1)
            end = min(len(text), start + draw.choice((0, 1, 5, 20)))
            text = text[:start] + draw.choice((*SCRAPS, str(draw.choice(EDGES)))) + text[end:]
        return text
