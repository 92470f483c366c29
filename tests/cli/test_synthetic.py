"""The command line with the synthetic model and with profiles: real node processes, and what is refused."""

from __future__ import annotations

import json

import pytest

from flowspec.synthetic.text import SyntheticText, mix
from tests.cli.running import run_main


def test_generate_writes_words_on_emulated_devices(capsys: pytest.CaptureFixture[str]) -> None:
    local = ["--model", "synthetic", "--stages", "8", "--profile", "slow-link"]
    asked = ["--prompt", "tell me a story", "--max-new-tokens", "6", "--seed", "3", "--json"]
    code, out, err = run_main(capsys, "generate", *local, *asked)
    assert code == 0, err
    found = json.loads(out)
    text = SyntheticText(mix(0, 3))
    assert found["token_ids"] == [text.token(4 + index) for index in range(6)]
    assert len(found["text"].split()) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "paper-70b"], "known are paper-13b, paper-7b"),
        (["--model", "synthetic", "--drafter", "causal-lm"], "its drafters are synthetic, ngram and none"),
        (["--drafter", "synthetic"], "knows the text of the model synthetic"),
        (["--connect", "127.0.0.1:1", "--profile", "paper-7b"], "--profile cannot be given with --connect"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = run_main(capsys, "generate", "--prompt", "a", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
