"""The table in the README matches the objectives, and each member stays small."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_probsft import objectives
from lit_probsft.objectives import Balanced, Objective, QuantileThreshold, Threshold, TokenStats

FOLDER = Path(objectives.__file__).parent
SHARED = ("__init__", "base", "quadrature", "token_stats")
MEMBERS: list[Any] = [getattr(objectives, name) for name in objectives.__all__]
MEMBERS = [member for member in MEMBERS if member not in (Objective, TokenStats)]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (FOLDER / "README.md").read_text().splitlines()
    if line.startswith("| `")
]
every_class = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)


def row(member: type) -> list[str]:
    (found,) = [row for row in ROWS if re.match(rf"`{member.__name__}\(", row[0])]
    return found


def test_the_table_has_one_row_per_member() -> None:
    assert len(ROWS) == len(MEMBERS)


@every_class
def test_every_member_has_a_row_with_its_arguments_and_formulas(member: type) -> None:
    name, f, weight, *_ = row(member)
    arguments = [argument.partition("=")[0] for argument in re.split(", ", name[name.index("(") + 1 : -2]) if argument]
    assert arguments == list(inspect.signature(member).parameters)
    assert f
    assert weight
    assert ("signed" in weight) == member().signed


@every_class
def test_the_table_has_what_a_member_reads_and_its_lean(member: type) -> None:
    objective = member()
    _, _, _, reads, lean, _ = row(member)
    if member is QuantileThreshold:
        assert reads == "as the base, capability"
        return
    if member in (Threshold, Balanced):
        assert reads == "as the base"
        return
    assert reads == ", ".join(sorted(objective.needs))
    assert lean == ("" if objective.needs else f"{objective.lean():.2f}".lstrip("0"))


def code_lines(path: Path) -> int:
    """Number of lines that are not blank, comments or docstrings."""
    tree = ast.parse(path.read_text())
    left = {i for i, line in enumerate(path.read_text().splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            left -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(left)


def test_a_member_costs_at_most_forty_lines() -> None:
    """Its file, two lines in `__init__`, one in tests/members.py and its row in the README."""
    members = Counter(Path(inspect.getfile(member)) for member in MEMBERS)
    assert {path for path in FOLDER.glob("*.py") if path.stem not in SHARED} == members.keys()
    for path, count in members.items():
        assert code_lines(path) / count + 4 <= 40, path
