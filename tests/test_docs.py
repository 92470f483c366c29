"""The documentation holds: its examples run as printed, and the page of files names every file there is."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from flowspec.client import Client, Generation
from flowspec.options import Options
from flowspec.topology import Topology
from flowspec.wire.messages import Chunk, GenerationStats
from tests.cli.running import run_main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()
SECONDS = 120.0
"""After which an example counts as hung."""


def blocks(language: str, page: str = README) -> list[str]:
    """Fenced code blocks of a page, their indentation in a list taken away."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(word: str) -> list[str]:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.startswith(word)]


def test_the_readme_shows_commands_programs_and_a_topology() -> None:
    assert len(commands("flowspec generate")) == 5
    assert len(commands("flowspec")) == 8
    assert len(blocks("python")) == 2
    assert len(blocks("yaml")) == 1


def test_the_commands_of_the_readme_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, because one reads what another wrote; in this process, because each would import torch again."""
    (tmp_path / "topology").symlink_to(ROOT / "topology")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for command in commands("flowspec"):
        if "path/to" in command:
            continue
        code, out, err = run_main(capsys, *shlex.split(command)[1:])
        assert code == 0, (command, err)
        assert out.strip(), command
        assert "Traceback" not in err, command
        assert max(map(len, out.splitlines())) <= 80 or "generate" in command, command


def run_program(program: str) -> list[str]:
    """The lines that it prints."""
    result = subprocess.run(
        (sys.executable, "-c", program), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_program_of_the_readme_runs_as_printed() -> None:
    *text, figures = run_program(blocks("python")[0])
    assert text
    assert re.fullmatch(r"\d+\.\d+ \(\d+(, \d+){15}\)", figures), figures


def test_the_program_of_the_page_of_the_client_runs_as_printed() -> None:
    program, continued = blocks("python", CLIENT)
    *_, figures, texts = run_program(program)
    assert re.fullmatch(r"\[\d+ tokens, \d+/s, (length|stop|eos)\]", figures), figures
    assert len(ast.literal_eval(texts)) == 2
    ast.parse(continued)


def test_the_page_of_the_client_has_a_row_for_everything_that_can_be_said_and_comes_back() -> None:
    rows = re.findall(r"^\| (.*?) \|", CLIENT, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    back = {each.name for kind in (Chunk, Generation, GenerationStats) for each in fields(kind)} - {"request"}
    assert not (Options.__optional_keys__ | {"prompt"} | back) - named
    arguments = set(inspect.signature(Client).parameters) - {"transport"}
    assert not arguments - named


def test_every_file_that_the_page_of_the_client_links_to_exists() -> None:
    missing = [link for link in re.findall(r"\]\(([^)#]+)", CLIENT) if not (ROOT / "docs" / link).exists()]
    assert not missing


def test_the_other_python_of_the_readme_is_python() -> None:
    ast.parse(f"async def example() -> None:\n{re.sub('^', '    ', blocks('python')[1], flags=re.MULTILINE)}")


def test_the_topology_of_the_readme_loads(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(blocks("yaml")[0])
    topology = Topology.load(file)
    assert [topology.layer_range(stage.name) for stage in topology.stages] == [(0, 14), (14, 28)]


def test_every_file_that_the_readme_links_to_exists() -> None:
    missing = [link for link in re.findall(r"\]\(([^)h][^)]*)\)", README) if not (ROOT / link).exists()]
    assert not missing


def test_the_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = [path for folder in ("flowspec", "nodes") for path in (ROOT / folder).rglob("*.py")]
    absent = [str(path) for path in modules if path.name != "__init__.py" and f"`{path.name}`" not in page]
    assert not absent
