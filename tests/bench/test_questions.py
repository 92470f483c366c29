"""Prompt sets: what comes with flowspec, and files of questions with their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowspec.bench.questions import OWN_SETS, read_set, read_sets
from flowspec.errors import ConfigurationError


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", OWN_SETS)
def test_an_own_set_has_eight_questions(name: str) -> None:
    found = read_set(name)
    assert found.name == name
    assert len({question.prompt for question in found.questions}) == len(found.questions) == 8


def test_places_are_counted_from_zero_and_both_ends_belong(tmp_path: Path) -> None:
    lines = [{"question_id": 81 + number, "turns": [f"q{number}", "more"]} for number in range(60)]
    found = read_set(str(write(tmp_path / "mt_bench.jsonl", *lines)), first=30, last=49)
    assert found.name == "mt_bench"
    assert [question.prompt for question in found.questions] == [f"q{number}" for number in range(30, 50)]
    assert found.questions[0].identity == "111"


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question_id": 1, "turns": ["a\u2028b"]}\n\n', encoding="utf-8")
    assert read_set(str(path)).questions[0].prompt == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{nonsense\n", "not JSON"),
        ([1], "a question is a JSON object, not list"),
        ({"turns": ["x"]}, "`question_id`"),
        ({"question_id": True, "turns": ["x"]}, "`question_id`"),
        ({"question_id": 2, "turns": []}, "`turns`"),
        ({"question_id": 2, "turns": [" "]}, "`turns`"),
        ({"question_id": 2, "turns": "x"}, "`turns`"),
    ],
)
def test_a_bad_line_is_told_with_file_and_line(tmp_path: Path, line: object, told: str) -> None:
    path = write(tmp_path / "bad.jsonl", {"question_id": 1, "turns": ["fine"]}, line)
    with pytest.raises(ConfigurationError) as caught:
        read_set(str(path))
    assert f"{path}:2: " in str(caught.value)
    assert told in str(caught.value)


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    two = write(tmp_path / "two.jsonl", {"question_id": 1, "turns": ["a"]}, {"question_id": 1, "turns": ["b"]})
    with pytest.raises(ConfigurationError, match="two questions 1"):
        read_set(str(two))
    with pytest.raises(ConfigurationError, match=r"/no/such/file\.jsonl cannot be read"):
        read_set("/no/such/file.jsonl")
    with pytest.raises(ConfigurationError, match="8 questions"):
        read_set("code", first=8)
    with pytest.raises(ConfigurationError, match="no such range"):
        read_set("code", first=3, last=2)
    folder = tmp_path / "other"
    folder.mkdir()
    same = write(folder / "code.jsonl", {"question_id": 1, "turns": ["a"]})
    with pytest.raises(ConfigurationError, match="two sets are called code"):
        read_sets(["code", str(same)])
