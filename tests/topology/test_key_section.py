"""A section `keys` is put into a text so that it says what it shall and nothing else is changed, or it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowspec.errors import ConfigurationError, TopologyError
from flowspec.topology.document import parse_document
from flowspec.topology.key_section import with_keys

SECTION = {"directory": "./keys", "nodes": {"draft": "a" * 40, "stage-1": "b" * 40}, "clients": {"true": "c" * 40}}

TEXTS = (
    "model: demo\n",
    "model: demo",
    "# only\nmodel: demo\n# behind\n",
    "keys: {}\nmodel: demo\n",
    "keys:\nmodel: demo\n",
    "keys:  # none yet\n\nmodel: demo\n",
    'keys:\n    nodes:\n          gone: "x"\n\n    # who\n    clients: {}\n\n# else\nmodel: demo\n',
    'keys:\n  nodes: {draft: "x",\n    gone: "y"} # two\n  listeners: {}\nmodel: demo\n',
    'keys:\n  clients:\n    "true": "x"\n    gone: y # c',
    "--- # begin\nkeys: {directory: ./keys, nodes: {}}\nmodel: demo\n",
)
SCRAPS = [
    ": ",
    "\n",
    "\r\n",
    "  ",
    "#",
    "# c\n",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "...\n",
    "---\n",
    "|\n",
    ">-\n",
    "{}",
    "'",
    '"',
    "\t",
    ",",
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_section_is_as_asked_for_and_comments_stay(text: str, newline: str) -> None:
    result = with_keys(text.replace("\n", newline), SECTION)
    values = parse_document(result).value
    assert {"directory": "./keys", **values.pop("keys")} in (SECTION, {**SECTION, "listeners": {}})
    assert values == {key: value for key, value in parse_document(text).value.items() if key != "keys"}
    assert result.count("\n") == result.count(newline if "\n" in text else "\n")
    for comment in ("# only", "# behind", "# none yet", "# who", "# else", "# begin"):
        assert (comment in text) == (comment in result)
    assert with_keys(result, SECTION) == result


@given(st.data())
def test_any_text_is_changed_as_asked_for_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(st.sampled_from(SCRAPS)) + text[place + data.draw(st.integers(0, 2)) :]
    try:
        before = parse_document(text).value
    except TopologyError:
        return
    try:
        after = parse_document(with_keys(text, SECTION)).value
    except ConfigurationError:
        return
    keys = after.pop("keys")
    assert {kind: found for kind, found in keys.items() if found and kind != "directory"} == {
        kind: found for kind, found in SECTION.items() if kind != "directory"
    }
    assert after == {key: value for key, value in before.items() if key != "keys"}
