"""docs/protocol.md is the authority: its tables name every kind, record and field of the code, with its type."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from flowspec.transport.sockets import SocketOptions
from flowspec.wire.codec import MAX_ITEMS
from flowspec.wire.frames import FrameLimits, message_types
from flowspec.wire.messages import PROTOCOL_VERSION
from flowspec.wire.tensors import ITEM_BYTES, MAX_DIMENSIONS

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTIONS = {
    match[1].strip("`"): re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", match[2], re.MULTILINE)
    for match in re.finditer(r"^#### (`[\w-]+`|\w+)(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


def written(hint: Any) -> str:
    """How the page writes a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    columns = {int: "ints", float: "floats", bool: "bools"}
    if origin in (types.UnionType, typing.Union):
        return f"{written(arguments[0])} or none"
    if origin is tuple and arguments[-1] is Ellipsis:
        return columns.get(arguments[0]) or f"[{written(arguments[0])}]"
    if origin is tuple:
        return f"[{', '.join(map(written, arguments))}]"
    return str(hint.__name__)


def records() -> dict[str, type]:
    """Every dataclass that is part of a message."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        for argument in typing.get_args(hint):
            visit(argument)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found[hint.__name__] = hint
            for inner in typing.get_type_hints(hint).values():
                visit(inner)

    for cls in message_types().values():
        for hint in typing.get_type_hints(cls).values():
            visit(hint)
    return found


TYPES = {kind: cls for kind, cls in message_types().items() if cls.__module__ == "flowspec.wire.messages"} | records()


def test_the_page_has_a_section_for_every_message_and_record_and_no_other() -> None:
    assert set(SECTIONS) == set(TYPES)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_the_table_of_a_message_names_its_fields_and_their_types_in_order(name: str) -> None:
    hints = typing.get_type_hints(TYPES[name])
    assert SECTIONS[name] == [(field.name, written(hints[field.name])) for field in dataclasses.fields(TYPES[name])]


def test_the_page_tells_version_dtypes_limits_and_depths_as_they_are() -> None:
    limits, options = FrameLimits(), SocketOptions()
    assert f"version **{PROTOCOL_VERSION}**" in PAGE
    assert all(f"`{dtype}`" in PAGE for dtype in ITEM_BYTES)
    assert f"At most {MAX_DIMENSIONS} dimensions" in PAGE
    assert f"of at most {MAX_ITEMS:,} X" in PAGE
    assert f"| frames of a message | {limits.frames} (header and {limits.frames - 1} tensors) |" in PAGE
    assert f"| header | {limits.header_bytes // 2**20} MiB |" in PAGE
    assert f"| bytes of a tensor | {limits.tensor_bytes // 2**20} MiB |" in PAGE
    assert limits.elements == 2**25
    assert "| elements of a tensor | 2^25 |" in PAGE
    depths = f"{options.pipe_depth} pipes, {options.broadcast_depth} broadcasts, {options.client_depth} clients"
    assert depths in PAGE
