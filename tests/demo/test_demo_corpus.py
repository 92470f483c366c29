"""Claims about the demo model's training text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowspec.demo.corpus import MAX_BYTES, collect, split_of, texts


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library: enough files that every side of the split gets some."""
    for index in range(200):
        (tmp_path / f"module{index}.py").write_text(f"value = {index}\n")
    return tmp_path


def test_no_path_lies_on_two_sides_of_the_split(library: Path) -> None:
    sources = collect(library)
    sides = {side: {source.path for source in sources if source.split == side} for side in ("train", "heldout")}
    assert sides["heldout"]
    assert sides["train"].isdisjoint(sides["heldout"])
    assert len({source.path for source in sources}) == len(sources) == 200


def test_the_split_depends_on_the_path_and_not_on_the_text(library: Path) -> None:
    before = {source.path: source.split for source in collect(library)}
    for path in library.iterdir():
        path.write_text(path.read_text() + "changed = True\n")
    assert {source.path: source.split for source in collect(library)} == before


def test_the_split_of_known_paths_never_changes() -> None:
    assert split_of("unittest/case.py") == "validation"
    assert split_of("argparse.py") == "train"


def test_a_text_that_occurs_twice_is_kept_once(library: Path) -> None:
    (library / "copy.py").write_text("value = 1\n")
    kept = [text for side in ("train", "validation", "heldout") for text in texts(collect(library), side)]  # type: ignore[arg-type]
    assert len(kept) == len(set(kept)) == 200


def test_packages_tables_and_huge_files_are_left_out(library: Path) -> None:
    for name in ("site-packages/a.py", "pydoc_data/topics.py", "encodings/cp1252.py"):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_text(f"name = {name!r}\n")
    (library / "huge.py").write_text("x = 1\n" * MAX_BYTES)
    (library / "latin.py").write_bytes(b"# \xe4\n")
    assert len(collect(library)) == 200


def test_the_running_library_has_all_three_sides() -> None:
    sources = collect()
    assert {source.split for source in sources} == {"train", "validation", "heldout"}
    assert any(source.is_test for source in sources)
    assert not any("site-packages" in source.path for source in sources)


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, flowspec.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
