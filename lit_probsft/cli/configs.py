"""`configs list | show NAME | copy NAME [OUT]`: the configurations that come with the package."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_probsft.cli.arguments import CommandParser, path_argument
from lit_probsft.errors import UserError, near_matches


def run(args: Sequence[str]) -> None:
    """List the configurations, or show or copy one.

    Raises:
        UserError: for an unknown name, or a folder that cannot be written.
    """
    parser = CommandParser(
        prog="python -m lit_probsft configs",
        description="List, show or copy the configurations that come with the package.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | show NAME | copy NAME [OUT]")
    actions.add_parser("list", help="list the names and what each configuration trains")
    show = actions.add_parser("show", help="print a configuration")
    copy_parser = actions.add_parser("copy", help="copy a configuration, and the files it includes, to a folder")
    for action in (show, copy_parser):
        action.add_argument("name", metavar="NAME", help="name as printed by `configs list`")
    copy_parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        type=path_argument,
        default=Path("configs"),
        help="folder to copy to (default: configs)",
    )
    copy_parser.add_argument("--overwrite", action="store_true", help="replace files that differ")
    options = parser.parse_args(args)
    if options.action == "list":
        found = names()
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {summary}" for name, summary in found.items()))
    elif options.action == "show":
        print(path_of(options.name).read_text(encoding="utf-8"), end="")
    else:
        written = copy(options.name, options.out, overwrite=options.overwrite)
        print("\n".join(map(str, written)))
        print(f"\npython -m lit_probsft fit --config {written[0]}")


def folder() -> Path:
    """The folder of configurations: inside an installed package, next to the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> dict[str, str]:
    """The first sentence of each configuration's header, by name: its path without `.yaml`."""
    root = folder()
    found = [path for path in sorted(root.rglob("*.yaml")) if "parts" not in path.relative_to(root).parts]
    return {path.relative_to(root).with_suffix("").as_posix(): _summary(path) for path in found}


def path_of(name: str) -> Path:
    """The file of configuration `name`, given with or without `.yaml`.

    Raises:
        UserError: for an unknown name.
    """
    known = names()
    short = name.removesuffix(".yaml").removeprefix("configs/")
    if short not in known:
        raise UserError("NAME", f"expected one of {', '.join(known)}, got {name!r}.{near_matches(short, known)}")
    return folder() / f"{short}.yaml"


def included_files(path: Path) -> list[Path]:
    """A configuration file and every file that it includes, directly or through another."""
    found = [path]
    for value in _strings(yaml.safe_load(path.read_text(encoding="utf-8"))):
        part = (path.parent / value).resolve() if value.endswith(".yaml") else None
        if part is not None and part.is_file():
            found += [file for file in included_files(part) if file not in found]
    return found


def copy(name: str, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy a configuration and the files it includes into folder `out`, where it works unchanged.

    Identical files that already exist are left alone.

    Returns:
        The paths of the copies, the configuration first.

    Raises:
        UserError: if a file exists with other content, or cannot be written.
    """
    root = folder().resolve()
    targets = {source: out / source.relative_to(root) for source in included_files(path_of(name).resolve())}
    for source, target in targets.items():
        if target.exists() and target.read_bytes() != source.read_bytes() and not overwrite:
            raise UserError("OUT", f"{target} exists and differs from the package's file; --overwrite replaces it")
    try:
        for source, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
    except OSError as error:
        raise UserError("OUT", f"expected a writable folder, got {str(out)!r}: {error.strerror}") from error
    return list(targets.values())


def _summary(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return header.split(" python -m ")[0].partition(". ")[0].rstrip(".")


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
