"""The log of a node: one JSON object a line, or lines for people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from flowspec.errors import ConfigurationError
from flowspec.runtime import logs

logger = logging.getLogger("flowspec.tests")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger("flowspec")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before
    root.setLevel(before[1])


def test_a_json_line_holds_what_was_said_and_what_was_given_with_it() -> None:
    stream = io.StringIO()
    logs.configure_logs("auto", "info", node="stage-1", stream=stream)
    logger.info("took %d ms\nand more", 7, extra={"session": "abc"})
    logger.debug("not asked for")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it broke")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "flowspec.tests", "took 7 ms\nand more")
    assert (first["node"], first["session"]) == ("stage-1", "abc")
    assert first["time"].endswith("+00:00")
    assert "ValueError: broken" in second["exception"]


def test_a_peer_cannot_make_a_line_of_its_own_or_one_without_end() -> None:
    stream = io.StringIO()
    logs.configure_logs("json", "warning", stream=stream)
    logger.warning("from %s", '"}\n{"level": "error"}' + "x" * 100_000)
    [line] = stream.getvalue().splitlines()
    assert len(line) < 10_000
    assert json.loads(line)["level"] == "warning"


def test_people_get_lines_without_json() -> None:
    stream = io.StringIO()
    logs.configure_logs("human", "info", node="draft", stream=stream)
    logger.warning("a [red]word[/red]")
    assert "draft: a [red]word[/red]" in stream.getvalue()
    assert "{" not in stream.getvalue()


def test_what_a_peer_says_neither_steers_a_terminal_nor_looks_like_a_line_of_its_own() -> None:
    stream = io.StringIO()
    logs.configure_logs("human", "info", node="draft", stream=stream)
    logger.warning("from %s", "\x1b]0;owned\x07\r\x9b2J\nERROR all keys were revoked\tnow")
    first, second = stream.getvalue().splitlines()
    assert r"\x1b]0;owned\x07\x0d\x9b2J" in first
    assert second.rstrip().endswith("  ERROR all keys were revoked\tnow".expandtabs()) or "\tnow" in second
    assert second.startswith("  ")
    assert not set("\x1b\x07\r\x9b") & set(stream.getvalue())


@pytest.mark.parametrize(("log_format", "level"), [("xml", "info"), ("json", "loud")])
def test_unknown_formats_and_levels_are_refused(log_format: str, level: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no log"):
        logs.configure_logs(log_format, level)


def test_a_parent_announces_how_its_nodes_are_to_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "")
    monkeypatch.setenv(logs.LEVEL, "")
    root = logging.getLogger("flowspec")
    before = list(root.handlers)
    logs.configure_announced("stage-1")
    assert root.handlers == before
    logs.announce_logs("json", "error")
    logs.configure_announced("stage-1")
    assert root.level == logging.ERROR
