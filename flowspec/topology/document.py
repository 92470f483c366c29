"""YAML with lines: reads a document into plain values and remembers on which line each key stands.

Stricter than YAML 1.1: duplicate keys, tags of one's own, deep nesting and huge documents are errors, and only true
and false are booleans (`no`, `off`, `12:30` and `2024-01-01` are strings). Knows nothing of topologies, and raises
`TopologyError` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowspec.errors import TopologyError

MAX_BYTES = 1024 * 1024
MAX_VALUES = 20_000
MAX_DEPTH = 16
MAX_DIGITS = 100
TOO_MUCH = "too many values, or nested too deeply"

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and the 1-based line of each key that leads to one."""

    value: Any
    file: str | None = None
    lines: dict[Key, int] = field(default_factory=dict)

    def line(self, key: Key) -> int | None:
        """The line of `key`, or of the nearest key around it."""
        return next((self.lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.lines), None)

    def error(self, message: str, key: Key = (), *, hint: str | None = None) -> TopologyError:
        """A `TopologyError` at `key`, ready to be raised."""
        name = ".".join(str(part) for part in key)
        return TopologyError(message, file=self.file, line=self.line(key), key=name or None, hint=hint)


def read_document(path: str | Path) -> Document:
    """The document in the file `path`; `TopologyError` if it is not there, not UTF-8, too large or not such YAML."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TopologyError(f"cannot be read: {reason}", file=str(path)) from error
    if len(data) > MAX_BYTES:
        raise TopologyError(f"is larger than {MAX_BYTES} bytes", file=str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TopologyError("is not UTF-8", file=str(path), line=line) from error
    return parse_document(text, file=str(path))


def parse_document(text: str, *, file: str | None = None) -> Document:
    """The one document in `text`."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise TopologyError(f"not YAML: {reason}", file=file, line=mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TopologyError(f"not YAML: {error.reason}", file=file, line=line) from error
    except RecursionError as error:
        raise TopologyError(TOO_MUCH, file=file) from error
    except (yaml.YAMLError, ValueError) as error:
        raise TopologyError(f"not YAML: {error}", file=file) from error
    if root is None:
        raise TopologyError("is empty", file=file)
    builder = _Builder(Document(None, file))
    return Document(builder.value(root, ()), file, builder.document.lines)


def write_document(value: Any) -> str:
    """`value` as YAML that `parse_document` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Builder:
    """Turns composed YAML nodes into plain values, noting lines on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.document.lines.setdefault(key, node.start_mark.line + 1)
        self.count += 1
        if self.count > MAX_VALUES or len(key) > MAX_DEPTH:
            raise self.document.error(TOO_MUCH, key[:MAX_DEPTH])
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, kind, key)
        raise self.document.error(f"the tag {node.tag} is not allowed", key)

    def _scalar(self, node: yaml.ScalarNode, kind: str, key: Key) -> Any:
        if kind == "str":
            return node.value
        scalar = _SCALARS.get(kind)
        if scalar is None or len(node.value) > MAX_DIGITS or not re.fullmatch(scalar.pattern, node.value):
            raise self.document.error(f"{node.value[:40]!r} cannot be read as {kind}", key)
        return scalar.read(node.value)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if name_node.tag == _MERGE:
                merged = self._merged(value_node, key) | merged
                continue
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or not name_node.tag.endswith(":str"):
                shown = name if isinstance(name, str) else "a list or mapping"
                raise TopologyError(f"{shown} cannot be a key", file=self.document.file, line=line, key=_dotted(key))
            here = (*key, name)
            if name in result:
                raise TopologyError(
                    f"is here twice, first in line {self.document.line(here)}",
                    file=self.document.file,
                    line=line,
                    key=_dotted(here),
                )
            self.document.lines[here] = line
            result[name] = self.value(value_node, here)
        return merged | result

    def _merged(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        """What `<<: *anchor` (or a list of anchors) brings in; earlier ones win."""
        found: dict[str, Any] = {}
        for part in _parts(node):
            value = self.value(part, (*key, "<<"))
            if not isinstance(value, dict):
                raise self.document.error("only mappings can be merged", (*key, "<<"))
            found = value | found
        return found


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    else:
        yield node


def _dotted(key: Key) -> str | None:
    return ".".join(str(part) for part in key) or None


_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as the core schema of YAML 1.2 does; gives up early where there is no end of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Keys are nodes as well as values, and what an alias stands for counts again.
        self._composed += 1
        if self._composed > 2 * MAX_VALUES:
            raise yaml.YAMLError(TOO_MUCH)
        composed: yaml.Node | None = super().compose_node(parent, index)
        return composed

    def fetch_flow_collection_start(self, token: Any) -> None:
        # A scanner that looks for keys takes time that grows with the square of the depth.
        if self.flow_level > MAX_DEPTH:
            raise yaml.YAMLError(TOO_MUCH)
        super().fetch_flow_collection_start(token)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as a string."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # These break a line for the emitter, which loses them there; in double quotes they are written as escapes.
        style = '"' if any(sign in text for sign in "\x85\u2028\u2029") else None
        return self.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A kind of plain scalar: how it looks, with which letters it may begin, how it is read."""

    pattern: str
    letters: str
    read: Callable[[str], Any]


_SCALARS = {
    "null": _Scalar(r"~|null|Null|NULL|", "~nN", lambda text: None),
    "bool": _Scalar(r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": _Scalar(r"[-+]?[0-9]+", "-+0123456789", int),
    "float": _Scalar(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
        lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    ),
}

_Loader.yaml_implicit_resolvers = {}
for _kind, _scalar in _SCALARS.items():
    _letters = [*_scalar.letters, ""] if _kind == "null" else list(_scalar.letters)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_scalar.pattern})$"), _letters)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
