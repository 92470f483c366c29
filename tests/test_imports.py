"""The import rules of docs/architecture.md, held by reading the sources: who may know whom.

An import counts wherever it stands, also inside a function and also for types alone, unless a test says otherwise.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "flowspec"

LEVELS = (
    {"errors", "demo", "program", "output", "printable"},
    {"wire", "topology", "tracing"},
    {"transport"},
    {"runtime", "schedule", "synthetic", "model", "drafting"},
    {"roles", "training"},
    {"planning", "cluster", "forking", "client", "options", "stopwatch", "stream"},
    {"cli", "server", "bench", "__main__"},
)
"""The parts of flowspec; a part imports only its own level and those before it."""

NEVER = (
    ("flowspec.schedule", {"torch", "zmq", "asyncio", "transformers"}),
    ("flowspec.topology", {"torch", "zmq", "asyncio", "transformers"}),
    ("flowspec.synthetic", {"torch", "zmq", "asyncio", "transformers"}),
    ("flowspec.planning", {"torch", "zmq", "asyncio", "transformers"}),
    ("flowspec.tracing", {"torch", "zmq", "asyncio", "transformers", "numpy"}),
    ("flowspec.wire.messages", {"torch", "zmq", "asyncio", "numpy"}),
    ("flowspec.wire.parameters", {"torch", "zmq", "asyncio", "numpy"}),
    ("flowspec.errors", {"torch", "zmq", "asyncio", "numpy"}),
    ("flowspec.client", {"torch", "transformers", "numpy"}),
    ("flowspec.wire", {"zmq", "asyncio"}),
    ("flowspec.model", {"zmq", "asyncio"}),
    ("flowspec.drafting", {"zmq", "asyncio"}),
    ("flowspec.roles", {"zmq"}),
    ("flowspec.training", {"zmq", "asyncio"}),
)

POLICY_FREE = ("flowspec.roles.stage",)
LIGHT = ("flowspec", "flowspec.client", "flowspec.schedule", "flowspec.topology", "flowspec.wire", "flowspec.cli.main")


@dataclass(frozen=True)
class Import:
    origin: str
    target: str
    line: int
    types_only: bool
    at_top: bool

    def __str__(self) -> str:
        return f"{self.origin}, line {self.line}: imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCES.rglob("*.py"))}


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import statement of a file; `from package import module` counts as an import of that module."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, types_only: bool, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner_types = types_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            inner_top = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for target in targets(child, package):
                yield Import(module, target, child.lineno, types_only, at_top)  # type: ignore[attr-defined]
            yield from walk(child, inner_types, inner_top)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, True)


def targets(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, *filter(None, [node.module])])
    inner = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else base for name in inner]


IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]
INNER = [found for found in IMPORTS if found.target.split(".")[0] == "flowspec" and found.origin != "flowspec"]


def part(module: str) -> str:
    """`schedule` of `flowspec.schedule.tree`; empty for the root package."""
    return module.partition(".")[2].partition(".")[0]


def level(name: str) -> int:
    """Parts without a place come last; a test of their own says so."""
    return next((number for number, parts in enumerate(LEVELS) if name in parts), len(LEVELS))


def listed(broken: list[Import]) -> str:
    return "\n".join(sorted({str(found) for found in broken}))


def test_every_part_has_its_place_in_the_order() -> None:
    unknown = {part(module) for module in MODULES} - {""} - set().union(*LEVELS)
    assert not unknown, f"say in LEVELS, and in docs/architecture.md, who may import {sorted(unknown)}"


def test_imports_go_one_way() -> None:
    broken = [found for found in INNER if part(found.target) and level(part(found.target)) > level(part(found.origin))]
    assert not broken, listed(broken)


def test_nothing_but_the_command_line_asks_the_root_package_for_more_than_its_version() -> None:
    allowed = LEVELS[-1] | {"client"}
    broken = [found for found in INNER if found.target == "flowspec" and part(found.origin) not in allowed]
    assert not broken, listed(broken)


def test_parts_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for found in INNER:
        if part(found.target) and part(found.target) != part(found.origin) and not found.types_only:
            graph.setdefault(part(found.origin), set()).add(part(found.target))
    assert_no_circle(graph)


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for found in INNER:
        is_own_package = found.origin.startswith(f"{found.target}.")
        if found.at_top and not found.types_only and not is_own_package:
            graph.setdefault(found.origin, set()).add(found.target)
    assert_no_circle(graph)


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(("owner", "forbidden"), NEVER, ids=[owner for owner, _ in NEVER])
def test_a_part_never_imports_what_it_must_not_know(owner: str, forbidden: set[str]) -> None:
    broken = [
        found
        for found in IMPORTS
        if (found.origin == owner or found.origin.startswith(f"{owner}.")) and found.target.split(".")[0] in forbidden
    ]
    assert not broken, listed(broken)


def test_only_transport_and_runtime_speak_zeromq() -> None:
    allowed = {"transport", "runtime", "bench"}
    broken = [found for found in IMPORTS if found.target.split(".")[0] == "zmq" and part(found.origin) not in allowed]
    assert not broken, listed(broken)


@pytest.mark.parametrize("stage", POLICY_FREE)
def test_a_stage_knows_no_policy(stage: str) -> None:
    seen, waiting = set(), [stage]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting += [found.target for found in INNER if found.origin == module and not found.types_only]
    known = {module for module in seen if part(module) == "schedule"} - {"flowspec.schedule.events"}
    assert not known, f"{stage} leads to {sorted(known)}"


def test_pickle_is_nowhere() -> None:
    broken = [found for found in IMPORTS if found.target.split(".")[0] in {"pickle", "marshal", "shelve", "dill"}]
    assert not broken, listed(broken)


def existing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in MODULES]


@pytest.mark.parametrize("module", existing(LIGHT))
def test_importing_it_leaves_torch_unloaded(module: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules, 'transformers' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["False", "False"]


def test_what_must_not_know_torch_does_not_reach_it_through_others() -> None:
    owners = [owner for owner, forbidden in NEVER if "torch" in forbidden]
    names = [name for name in MODULES if any(name == owner or name.startswith(f"{owner}.") for owner in owners)]
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
