"""Recording a real run for the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowspec.bench import record
from flowspec.errors import ConfigurationError


def test_a_place_that_cannot_be_written_to_is_known_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "resolve_model", lambda _: pytest.fail("the model was looked for"))
    with pytest.raises(ConfigurationError, match="the recording cannot be written to"):
        record.main(["--prompts", "code", "--out", str(tmp_path / "none" / "recording.jsonl")])
