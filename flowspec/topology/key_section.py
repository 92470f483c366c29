"""The section `keys` in the text of a topology file: put there or changed, and everything around it as it stands.

Lines that stay keep their comments, and the file its kind of line ends. A text that cannot be changed so is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeGuard

import yaml

from flowspec.errors import ConfigurationError, TopologyError
from flowspec.topology.document import parse_document, write_document
from flowspec.topology.keys import DIRECTORY

COMMENT = "# Made by `flowspec keys`: public keys, nothing here is secret. Each device keeps its own NAME.secret."

KINDS = ("nodes", "clients", "listeners")

LINE_END = re.compile(r"\r\n|\n|\r|\Z")


def with_keys(text: str, section: dict[str, Any], *, file: str | None = None) -> str:
    """The topology `text` with the values of `section` as its `keys`; `ConfigurationError` if it cannot be done."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ConfigurationError(
            f"{file or 'the topology'} is written in braces, and nothing can be added to it",
            hint="write it as lines, one for each key, and run this again; nothing was changed",
        )
    result = _Editor(text).with_section(root, section)
    before, after = _values(text), _values(result)
    if (
        before is None
        or after is None
        or _meaning(after.pop("keys", None)) != _meaning(section)
        or _differ(before, after)
    ):
        raise ConfigurationError(
            f"the section `keys` cannot be put into {file or 'the topology'} without changing something else",
            hint="let its keys begin at the start of their lines, without `...` at the end, without anchors in `keys`; "
            "nothing was changed",
        )
    return result


def _values(text: str) -> dict[str, Any] | None:
    try:
        value = parse_document(text).value
    except TopologyError:
        return None
    return value if isinstance(value, dict) else None


def _differ(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether anything but the keys is another; also when it only stands in another order, or is of another type."""
    return repr({key: value for key, value in before.items() if key != "keys"}) != repr(after)


def _meaning(section: dict[str, Any] | None) -> dict[str, Any]:
    """What a section says, whether or not it writes down defaults."""
    given = {key: value for key, value in (section or {}).items() if value}
    return {"directory": DIRECTORY, **given}


class _Editor:
    """Collects changes to a text, as places and what stands there instead, and makes them all at once."""

    def __init__(self, text: str) -> None:
        found = LINE_END.search(text)
        self.newline = (found.group() if found else "") or "\n"
        self.text = text if text.endswith(("\n", "\r")) else text + self.newline
        self.changes: list[tuple[int, int, str]] = []

    def with_section(self, root: yaml.MappingNode, section: dict[str, Any]) -> str:
        pair = _pair(root, "keys")
        if pair is None:
            return self.newline.join([self.text.rstrip(), "", COMMENT, "keys:", *_lines(section, 2), ""])
        _, value = pair
        if _is_block(value):
            self._change_section(value, section)
        else:
            self._write_out(pair, _lines(section, 2))
        return self._changed()

    def _change_section(self, node: yaml.MappingNode, section: dict[str, Any]) -> None:
        directory, indent = _pair(node, "directory"), node.start_mark.column
        if directory is not None:
            self._set(directory[1], section["directory"])
        missing = (
            {} if directory is not None or section["directory"] == DIRECTORY else {"directory": section["directory"]}
        )
        for kind in KINDS:
            pair, wanted = _pair(node, kind), section.get(kind, {})
            if pair is None:
                missing |= {kind: wanted} if wanted else {}
            elif _is_block(pair[1]):
                self._change_kind(pair[1], wanted)
            elif wanted:
                self._write_out(pair, _owners(wanted, indent + 2))
        self._insert(self._line_after(_end(node)), _lines(missing, indent))

    def _change_kind(self, node: yaml.MappingNode, wanted: dict[str, str]) -> None:
        """Entries that stay stay where they are; new ones come behind them."""
        for name, value in node.value:
            if name.value in wanted:
                self._set(value, wanted[name.value])
            else:
                start = name.start_mark.index - name.start_mark.column
                self.changes.append((start, self._line_after(_end(value)), ""))
        written = {name.value for name, _ in node.value}
        new = {name: key for name, key in wanted.items() if name not in written}
        self._insert(self._line_after(_end(node)), _owners(new, node.start_mark.column))

    def _set(self, node: yaml.Node, value: str) -> None:
        if node.value != value:
            self.changes.append((node.start_mark.index, node.end_mark.index, _quoted(value)))

    def _write_out(self, pair: tuple[yaml.Node, yaml.Node], lines: list[str]) -> None:
        """What is empty or in braces, as lines."""
        name, value = pair
        # Where there is no colon, or another one, the result is not what was asked for, and refused as a whole.
        colon = max(name.end_mark.index, self.text.find(":", name.end_mark.index))
        self.changes.append((colon + 1, max(colon + 1, value.end_mark.index), ""))
        self._insert(self._line_after(value.end_mark.index), lines)

    def _insert(self, place: int, lines: list[str]) -> None:
        self.changes.append((place, place, "".join(line + self.newline for line in lines)))

    def _line_after(self, place: int) -> int:
        """Where the line behind the one at `place` begins."""
        found = LINE_END.search(self.text, place)
        return found.end() if found else len(self.text)

    def _changed(self) -> str:
        text = self.text
        # From the end on, so that places stay true; of two at one place, the one that was asked for first stands first.
        self.changes.sort(key=lambda change: change[:2])
        for start, end, new in reversed(self.changes):
            text = text[:start] + new + text[end:]
        return text


def _pair(node: yaml.MappingNode, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next((pair for pair in node.value if pair[0].value == key), None)


def _is_block(node: yaml.Node) -> TypeGuard[yaml.MappingNode]:
    return isinstance(node, yaml.MappingNode) and not node.flow_style


def _end(node: yaml.Node) -> int:
    """Where the last scalar of a node ends: what stands behind it, comments too, belongs to the next."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return int(node.end_mark.index)
    return max(_end(value) for _, value in node.value)


def _lines(section: dict[str, Any], indent: int) -> list[str]:
    lines = [f"{' ' * indent}directory: {_quoted(section['directory'])}"] if "directory" in section else []
    for kind in KINDS:
        if section.get(kind):
            lines += [f"{' ' * indent}{kind}:", *_owners(section[kind], indent + 2)]
    return lines


def _owners(keys: dict[str, str], indent: int) -> list[str]:
    return [f"{' ' * indent}{_name(name)}: {_quoted(key)}" for name, key in keys.items()]


def _name(name: str) -> str:
    """A name as YAML takes it for text, also where it looks like a number or a word such as `true`."""
    return write_document({name: 0}).removesuffix(": 0\n")


def _quoted(text: str) -> str:
    # What JSON escapes in a string, YAML reads in double quotes.
    return json.dumps(text, ensure_ascii=False)
