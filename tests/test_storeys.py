"""The package has storeys: a folder imports only folders below it, and no imports form a cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lit_probsft

PACKAGE = Path(lit_probsft.__file__).parent

STOREYS = (
    "storage",
    "objectives",
    "parallel",
    "data.rows",
    "data.tokens",
    "data.batches",
    "data",
    "head",
    "model",
    "training",
    "run",
    "analysis",
    "evaluation.grading",
    "evaluation.tasks",
    "evaluation.generation",
    "evaluation",
    "cli.config",
    "cli.help",
    "cli",
)
"""The folders, from the ground up."""

AT_THE_ROOT = {"__init__", "__main__", "errors"}


def modules() -> dict[str, Path]:
    """The files of the package, by dotted name below the package."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


def imports(path: Path, *, at_run_time: bool) -> Iterator[tuple[int, str]]:
    """The line and the target module of every import from the package.

    With `at_run_time`, imports under TYPE_CHECKING are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    known = modules()
    for node in ast.walk(tree):
        if at_run_time and node in checked:
            continue
        if isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        else:
            continue
        for name in named:
            if name.partition(".")[0] != PACKAGE.name:
                continue
            inner = name.partition(".")[2]
            candidates = (inner, folder_of(inner), f"{inner}.__init__", f"{folder_of(inner)}.__init__")
            yield node.lineno, next((found for found in candidates if found in known), "__init__")


def test_only_three_files_are_at_the_root() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == AT_THE_ROOT


def test_every_folder_has_a_storey() -> None:
    assert {folder_of(module) for module in modules()} - {""} == set(STOREYS)


@pytest.mark.parametrize("module", [module for module in modules() if folder_of(module)])
def test_a_folder_imports_only_folders_below_it(module: str) -> None:
    storey = STOREYS.index(folder_of(module))
    for line, target in imports(modules()[module], at_run_time=False):
        if target in AT_THE_ROOT:
            continue
        assert STOREYS.index(folder_of(target)) <= storey, f"{module}:{line} imports {target}, which is above it"


def test_imports_form_no_cycle() -> None:
    graph = {
        module: {target for _, target in imports(path, at_run_time=True)} - {module, "__init__"}
        for module, path in modules().items()
        if not module.endswith("__init__")
    }
    assert [*TopologicalSorter(graph).static_order()]
