"""Which flags a resumed run changes."""

from __future__ import annotations

import json
from typing import Any

import yaml

WITHOUT_EFFECT = (
    "seed_everything",
    "model.model",
    "model.model.model_name_or_path",
    "model.model.seed",
    "model.probe_rows",
    "model.lora.start",
)
"""Flags that act only before the first step; their results are in the checkpoint."""


_IGNORED = ("name", "runs_dir")


def changed_flags(before: str, now: str) -> dict[str, tuple[Any, Any]]:
    """The flags in which two complete configurations differ.

    A flag that only one of them has counts if the class that it belongs to differs as well. Otherwise another version
    of the package has added or removed it.

    Args:
        before: YAML.
        now: YAML.

    Returns:
        Old and new value by flag, in the order of `now`. The value of a class is its import path.
    """
    old, new = (_flags(yaml.safe_load(text)) for text in (before, now))
    changed: dict[str, tuple[Any, Any]] = {}
    for flag in [*new, *(flag for flag in old if flag not in new)]:
        owner = flag.rpartition(".")[0]
        both = flag in old and flag in new
        if flag not in _IGNORED and old.get(flag) != new.get(flag) and (both or owner in changed):
            changed[flag] = old.get(flag), new.get(flag)
    return changed


def describe_changes(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Lines for the user about the flags that `changed_flags` returns."""
    lines = []
    for addition, without_effect in (("", False), (", without effect (the checkpoint holds their results)", True)):
        flags = {flag: values for flag, values in changed.items() if (flag in WITHOUT_EFFECT) == without_effect}
        if flags:
            lines.append(f"--resume: changed since the checkpoint{addition}:")
            lines += [f"  {flag}: {' -> '.join(_short(*values))}" for flag, values in flags.items()]
    return lines


def _flags(node: Any, name: str = "") -> dict[str, Any]:
    """The values of a configuration by flag; a class is the value of its option."""
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
    """The import path of a class."""

    __slots__ = ()


def _short(*values: Any) -> list[str]:
    """Values as text; classes by their short names, unless these are equal."""
    names = [value.rpartition(".")[2] if isinstance(value, _Class) else value for value in values]
    chosen = values if len(set(map(str, names))) < len(names) else names
    return ["none" if v is None else str(v) if isinstance(v, str) else json.dumps(v) for v in chosen]
