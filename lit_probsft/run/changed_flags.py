"""Which flags differ between a run and its resumption."""

from __future__ import annotations

import json
from typing import Any

import yaml

KEPT = (
    "seed_everything",
    "model.model",
    "model.model.model_name_or_path",
    "model.model.seed",
    "model.probe_rows",
    "model.lora.start",
)
"""Flags whose work was done before the first step: the checkpoint has what came of it."""


_NOT_ASKED = ("name", "runs_dir")


def changed_flags(before: str, now: str) -> dict[str, tuple[Any, Any]]:
    """What two whole configurations differ in, by flag.

    An option that only one of them has is told where the class that has it differs, and not where a release of the
    package has brought or taken it.

    Args:
        before: YAML.
        now: YAML.

    Returns:
        Old and new value by flag, in the order of `now`; classes are their import paths.
    """
    old, new = (_flags(yaml.safe_load(text)) for text in (before, now))
    changed: dict[str, tuple[Any, Any]] = {}
    for flag in [*new, *(flag for flag in old if flag not in new)]:
        owner = flag.rpartition(".")[0]
        both = flag in old and flag in new
        if flag not in _NOT_ASKED and old.get(flag) != new.get(flag) and (both or owner in changed):
            changed[flag] = old.get(flag), new.get(flag)
    return changed


def told_changes(changed: dict[str, tuple[Any, Any]], config: Any) -> list[str]:
    """The same in words.

    Args:
        changed: of `changed_flags`.
        config: the file that had the old values.
    """
    lines = []
    for taken, words in ((True, "and taken from now on"), (False, "without effect: the checkpoint has what they did")):
        flags = {flag: values for flag, values in changed.items() if (flag not in KEPT) == taken}
        if flags:
            lines.append(f"--resume: other than in {config}, {words}:")
            lines += [f"  {flag}: {' -> '.join(_short(*values))}" for flag, values in flags.items()]
    return lines


def _flags(node: Any, name: str = "") -> dict[str, Any]:
    """Leaves by flag; a class stands under the name of its option."""
    if not isinstance(node, dict):
        return {name: node}
    found: dict[str, Any] = {}
    if name and not node.keys() & {"class_path"}:
        found[name] = "a mapping"
    for key, value in node.items():
        if key == "class_path":
            found[name] = _Class(value)
        elif key == "init_args":
            found.update({k: v for k, v in _flags(value, name).items() if k != name})
        else:
            found.update(_flags(value, f"{name}.{key}" if name else str(key)))
    return found


class _Class(str):
    """The import path of one."""

    __slots__ = ()


def _short(*values: Any) -> list[str]:
    """In words; classes by their names alone, where that tells them apart."""
    names = [value.rpartition(".")[2] if isinstance(value, _Class) else value for value in values]
    chosen = values if len(set(map(str, names))) < len(names) else names
    return ["none" if v is None else str(v) if isinstance(v, str) else json.dumps(v) for v in chosen]
