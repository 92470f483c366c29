"""Claims about the user's text: what is read, what is held out, and what is said when it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowspec.errors import ConfigurationError, ModelError
from flowspec.model.text import load_tokenizer
from flowspec.training.documents import Document, is_heldout, read_documents
from flowspec.training.texts import read_texts
from tests.checkpoints import EOS_ID, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(100):
        (tmp_path / f"part{index}.txt").write_text(f"text number {index}, " * 30)
    return tmp_path


def names(path: Path, **how: Any) -> list[str]:
    return [document.name for document in read_documents([path], **how)]


def test_folders_are_read_by_suffix_files_as_they_are(folder: Path) -> None:
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / "notes.log").write_text("a log")
    (folder / ".hidden.txt").write_text("hidden")
    assert len(names(folder)) == 100
    assert names(folder, suffixes=(".log",)) == ["notes.log"]
    assert names(folder / "notes.log") == ["notes.log"]


def test_a_text_that_occurs_twice_is_read_once(folder: Path) -> None:
    (folder / "copy.txt").write_text((folder / "part1.txt").read_text())
    assert len(names(folder)) == 100


def test_a_file_never_changes_sides(folder: Path) -> None:
    sides = {document.name: document.heldout for document in read_documents([folder])}
    assert 0 < sum(sides.values()) < 30
    assert all(is_heldout(name) == side for name, side in sides.items())


def test_lines_are_texts_or_conversations(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    told = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hum"}]
    records = [{"text": "plain"}, {"messages": turns}, {"conversations": told}]
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    found = list(read_documents([file]))
    assert [(each.text, each.turns) for each in found] == [
        ("plain", ()),
        ("", (("user", "hi"), ("assistant", "ho"))),
        ("", (("user", "hi"), ("assistant", "hum"))),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_json_leaves_inside_a_text_ends_no_line(tmp_path: Path, end: str) -> None:
    file = tmp_path / "data.jsonl"
    wanted = [f"one\u2028two\u2029three\u0085four {index}" for index in range(100)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in wanted]
    file.write_bytes(end.join(lines).encode())
    found = list(read_documents([file]))
    assert [each.text for each in found] == wanted
    assert [each.heldout for each in found] == [is_heldout(line) for line in lines]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "data.jsonl:1 is not JSON"),
        ("[1]", "is no document"),
        ('{"other": 1}', "is no document"),
        ('{"messages": [{"role": "user"}]}', "no role or no content"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(ConfigurationError, match=complaint):
        list(read_documents([tmp_path / "data.jsonl"]))


def test_paths_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file or folder"):
        list(read_documents([tmp_path / "absent"]))
    with pytest.raises(ConfigurationError, match="holds no text"):
        list(read_documents([tmp_path]))
    (tmp_path / "image.png").write_bytes(b"\x89\xff")
    with pytest.raises(ConfigurationError, match="no text in UTF-8"):
        list(read_documents([tmp_path / "image.png"]))


def test_every_document_ends_with_the_end_token(folder: Path, tokenizer: Any) -> None:
    texts = read_texts(read_documents([folder]), tokenizer, EOS_ID, 16)
    assert not texts.by_tail
    assert len(texts.train) + len(texts.heldout) == 100
    assert {int(file.tokens[-1]) for file in (*texts.train, *texts.heldout)} == {EOS_ID}
    assert texts.counts(352)[EOS_ID] == len(texts.train)


def test_of_a_single_file_the_end_is_held_out(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "book.txt").write_text("once upon a time there was a fox and it ran. " * 200)
    texts = read_texts(read_documents([tmp_path / "book.txt"]), tokenizer, EOS_ID, 32)
    assert texts.by_tail
    assert 32 < texts.heldout_tokens < texts.train_tokens / 10


def test_too_little_text_is_told_with_its_size(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "note.txt").write_text("the quick brown fox")
    with pytest.raises(ConfigurationError, match="tokens are too little text"):
        read_texts(read_documents([tmp_path / "note.txt"]), tokenizer, EOS_ID, 64)


def test_a_conversation_goes_through_the_models_template(tokenizer: Any) -> None:
    document = Document("a:1", "", (("user", "the sun " * 40), ("assistant", "is up " * 40)), False)
    texts = read_texts([document], tokenizer, EOS_ID, 8)
    whole = [token for file in (*texts.train, *texts.heldout) for token in file.tokens.tolist()]
    assert tokenizer.decode(whole[:-1]) == "the sun " * 40 + "\n" + "is up " * 40 + "\n"


def test_a_conversation_for_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    bare = load_tokenizer(tmp_path)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        read_texts([Document("a:1", "", (("user", "hi"),), False)], bare, None, 8)
