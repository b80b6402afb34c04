"""`configs`: the configurations that come with the package, listed, shown, and copied to where they can be changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from lit_probsft.errors import UserError, near_matches


def folder() -> Path:
    """Where they lie: within an installed package, beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> dict[str, str]:
    """Every recipe, by its path without `.yaml`, and the first sentence of its header."""
    root = folder()
    found = [path for path in sorted(root.rglob("*.yaml")) if "parts" not in path.relative_to(root).parts]
    return {path.relative_to(root).with_suffix("").as_posix(): _header(path) for path in found}


def path_of(name: str) -> Path:
    """The file of recipe `name`, with or without `.yaml`.

    Raises:
        UserError: there is none of this name.
    """
    known = names()
    short = name.removesuffix(".yaml").removeprefix("configs/")
    if short not in known:
        raise UserError("NAME", f"expected one of {', '.join(known)}, got {name!r}.{near_matches(short, known)}")
    return folder() / f"{short}.yaml"


def parts_of(path: Path) -> list[Path]:
    """The recipe's file and every other that it names, directly or through another."""
    found = [path]
    for value in _texts(yaml.safe_load(path.read_text(encoding="utf-8"))):
        part = (path.parent / value).resolve() if value.endswith(".yaml") else None
        if part is not None and part.is_file():
            found += [more for more in parts_of(part) if more not in found]
    return found


def copy(name: str, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy a recipe and its parts into folder `out`, where it works as it does here.

    Returns:
        What was written, the recipe first; files that are there already, and the same, are left alone.

    Raises:
        UserError: a file that is there says something else, or cannot be written.
    """
    root = folder().resolve()
    targets = {part: out / part.relative_to(root) for part in parts_of(path_of(name).resolve())}
    for part, target in targets.items():
        if target.exists() and target.read_bytes() != part.read_bytes() and not overwrite:
            raise UserError("OUT", f"{target} is there and differs from the package's; --overwrite replaces it")
    try:
        for part, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(part)):
                shutil.copyfile(part, target)
    except OSError as error:
        raise UserError(
            "OUT", f"expected a folder that can be written to, got {str(out)!r}: {error.strerror}"
        ) from error
    return list(targets.values())


def _header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#")).split(" python -m ")[0]
    return text.partition(". ")[0].rstrip(".")


def _texts(value: Any) -> list[str]:
    """All texts in nested plain data."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []
