"""What commands say of a topology file before they start anything: options of its policy, and what it says in vain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.cli.running import run_main

PAIR = """\
model: synthetic
profile: paper-7b
nodes:
  - {name: draft, role: draft, host: 127.0.0.1, port: 7000}
  - {name: one, role: stage, host: 127.0.0.1, port: 7010}
  - {name: two, role: stage, host: 127.0.0.1, port: 7020}
"""

IDLE = """\
links:
  - {from: draft, to: one, latency_ms: 1}
  - {from: one, to: two, latency_ms: 1}
  - {from: one, to: draft, latency_ms: 1}
  - {from: two, to: draft, latency_ms: 1}
  - {from: two, to: one, latency_ms: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pair.yaml"


@pytest.mark.parametrize(
    "command",
    ["node one --dry-run", "node one", "node draft", "up", "doctor", "plan", "simulate"],
)
@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ("{tre: 5}", "tre", "the policy flowspec has no option 'tre'"),
        ("{segment: 8, tree: 5000}", "tree", "the option tree of the policy flowspec cannot be '5000'"),
    ],
)
def test_options_that_a_policy_does_not_have_are_refused_with_their_line(
    capsys: pytest.CaptureFixture[str], file: Path, command: str, options: str, key: str, words: str
) -> None:
    file.write_text(f"{PAIR}policy_options:\n  {options}\n")
    name, *more = command.split()
    code, out, err = run_main(capsys, name, str(file), *more)
    assert (code, out) == (2, "")
    assert f"{file}:8: `policy_options.{key}`: {words}\n  options of flowspec: tree (2 to 256; 256)" in err


def findings(capsys: pytest.CaptureFixture[str], file: Path) -> dict[str, str]:
    """What the doctor finds in vain, by key."""
    _, out, _ = run_main(capsys, "doctor", str(file), "--json", "--connect-timeout", "0.2")
    found = [each for each in json.loads(out)["findings"] if each["check"] == "topology"]
    assert {each["state"] for each in found} <= {"warning"}
    return {each["subject"]: each["found"] for each in found}


def test_a_link_on_which_nothing_is_sent_is_remarked(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    file.write_text(PAIR)
    assert findings(capsys, file) == {}
    file.write_text(PAIR + IDLE)
    words = "two sends nothing to one, so this slows nothing down"
    assert findings(capsys, file) == {"links.4": words}
    _, out, _ = run_main(capsys, "node", str(file), "one", "--dry-run")
    assert f"note     links.4: {words}" in out


def test_a_context_beyond_the_models_is_remarked(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    model = write_checkpoint(file.parent / "model", layers=2)
    most = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    real = PAIR.replace("synthetic", str(model)) + "drafter: ngram\n"
    words = f"999999999 tokens are more than the model takes: requests get {most}"
    file.write_text(f"{real}limits: {{context: 999999999}}\n")
    assert findings(capsys, file) == {"limits.context": words}
    for name in ("draft", "one"):
        _, out, _ = run_main(capsys, "node", str(file), name, "--dry-run")
        assert f"note     limits.context: {words}" in out
    file.write_text(f"{real}limits: {{context: {most}}}\n")
    assert findings(capsys, file) == {}
