"""Atomic writes: a name always refers to a complete file or folder.

Everything is written next to its final path and then renamed. Unfinished files, and files about to be deleted, have
names that start with a dot; nobody reads them, and `tidy` removes them. This works on local and POSIX-like shared file
systems.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, first_line


def partial_of(path: Path) -> Path:
    """The path that `path` is written to before it is renamed."""
    return path.with_name(f".{path.name}.partial")


def _old_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a partial path to write to; rename it to `path` at the end, or remove it after an error.

    Works for files and folders. A crash leaves at most the partial path behind, and the next write to `path` removes
    it.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # resolve() raises for a loop
    partial = partial_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    remove(partial)
    try:
        yield partial
        put_in_place(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise


def put_in_place(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`. A folder already at `path` is renamed first, as it cannot be replaced."""
    if path.is_dir() and not path.is_symlink():
        old = _old_of(path)
        remove(old)
        os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            os.rename(old, path)
            raise
        remove(old)
    else:
        os.replace(partial, path)
    sync_folder(path.parent)


def recover(path: Path) -> None:
    """Restore a folder if a crash came between the two renames of `put_in_place`."""
    if not os.path.lexists(path) and _old_of(path).is_dir():
        os.rename(_old_of(path), path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists. A folder is renamed first, so that it disappears at once."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if path.suffix != ".deleted":
        doomed = path.with_name(f".{path.name.removeprefix('.')}.deleted")
        remove(doomed)
        os.rename(path, doomed)
        path = doomed
    shutil.rmtree(path)


def tidy(folder: Path) -> None:
    """Delete what a crash left in a folder."""
    for suffix in ("partial", "old", "deleted"):
        for leftover in folder.glob(f".*.{suffix}"):
            remove(leftover)


def link(name: Path, target: Path) -> None:
    """Make `name` another name of `target`, which is in the same folder, in one step.

    A file gets a hard link, so that the second name survives when the first is deleted. A folder gets a symbolic link,
    and so does a file where the file system has no hard links.
    """
    partial = partial_of(name)
    partial.unlink(missing_ok=True)
    try:
        os.link(target, partial)
    except OSError:
        os.symlink(target.name, partial)
    if name.is_dir() and not name.is_symlink():
        remove(name)  # os.replace does not replace a folder by a link
    os.replace(partial, name)
    partial.unlink(missing_ok=True)  # os.replace does nothing if both are already names of one file


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def report_write_errors(argument: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError about `argument`: `path` could not be written."""
    try:
        yield
    except OSError as error:
        raise UserError(argument, f"{path} could not be written: {first_line(error)}") from error


def write_text(path: Path, text: str, argument: str = "--runs_dir") -> None:
    """Write a text file atomically: readers see the old text or the new text.

    Args:
        path: the file.
        text: its content.
        argument: the flag that names the file or its folder.

    Raises:
        UserError: the file could not be written; the old text is unchanged.
    """
    if path.is_dir():
        raise UserError(argument, f"{path} could not be written: {os.strerror(errno.EISDIR)}")
    with report_write_errors(argument, path), atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
        sync_file(partial)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of a run; None if it does not exist.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return read_object(path) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(str(path), first_line(error)) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not valid JSON, is nested too deeply, or is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as JSON, atomically. NaN and infinities become null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
