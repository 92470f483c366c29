from __future__ import annotations

from pathlib import Path

import pytest

from flowspec.bench.heldout import CHARACTERS, COUNT, heldout_prompts, main
from flowspec.bench.questions import read_set
from flowspec.demo.corpus import collect, texts
from flowspec.errors import ConfigurationError


def test_the_file_is_a_set_of_questions_that_the_demo_model_has_not_seen(tmp_path: Path) -> None:
    file = tmp_path / "new" / "heldout.jsonl"
    main([str(file)])
    questions = read_set(str(file)).questions
    assert len({question.digest for question in questions}) == len(questions) == COUNT
    sources = collect()
    unseen = texts(sources, "heldout")
    seen = texts(sources, "train") + texts(sources, "validation")
    for question in questions:
        assert 0 < len(question.prompt) <= CHARACTERS
        assert any(text.startswith(question.prompt) for text in unseen)
        assert not any(text.startswith(question.prompt) for text in seen)


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_more_prompts_than_there_are_files_are_refused(count: int) -> None:
    with pytest.raises(ConfigurationError, match="held-out files"):
        heldout_prompts(count)


def test_a_file_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        main([str(tmp_path / "file" / "heldout.jsonl")])
