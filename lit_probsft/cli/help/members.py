"""The classes of this package, and which of them an option offers."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

_CLASS = re.compile(r"^class (\w+)(?:\((.*?)\))?:", re.MULTILINE)
_ROOT = Path(__file__).parents[2]


class _Member(NamedTuple):
    path: str
    bases: list[str]


@functools.cache
def _members() -> dict[str, _Member]:
    """All public classes of the package by name. A regular expression finds them, since parsing takes a second."""
    found = {}
    for file in sorted(_ROOT.rglob("*.py")):
        module = ".".join(file.relative_to(_ROOT.parent).with_suffix("").parts)
        for name, bases in _CLASS.findall(file.read_text(encoding="utf-8")):
            if not name.startswith("_"):
                found[name] = _Member(f"{module}.{name}", [base.strip() for base in bases.split(",") if base.strip()])
    return found


def members(base: str) -> list[str]:
    """Import paths of `base`, given by its own path, and of the package's classes derived from it that can be used."""
    known = _members()
    name = base.rpartition(".")[2]
    if name not in known or known[name].path != base:
        return []
    family, size = {name}, 0
    while len(family) > size:
        size = len(family)
        family |= {other for other, member in known.items() if family & {*member.bases}}
    return [known[other].path for other in sorted(family, key=str.lower) if "ABC" not in known[other].bases]
