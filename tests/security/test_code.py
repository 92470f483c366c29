"""What the sources must never do: run what a peer or a file sends."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("flowspec", "nodes") for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"recv_pyobj", "send_pyobj", "loads", "load"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_is_sent(path: Path) -> None:
    for name, call in calls(path):
        where = f"{path.name}:{call.lineno}: {name}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name.rpartition(".")[2] not in ("recv_pyobj", "send_pyobj", "unsafe_load", "full_load"), where
        if name in ("torch.load", "load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", f"{where} without weights_only"
        # Left out, transformers asks on the terminal, and runs the code when it hears yes.
        unsaid = "None" if re.fullmatch(r"Auto\w+\.from_pretrained", name) else "False"
        assert keywords.get("trust_remote_code", unsaid) == "False", f"{where} may run code from a model"
        assert keywords.get("allow_pickle") in (None, "False"), where
        if name == "yaml.load":
            assert "Safe" in keywords.get("Loader", ""), where
