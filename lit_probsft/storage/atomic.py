"""Writing so that a name never stands for something half-written: beside its place, then renamed.

What is under way, or about to be deleted, has a name with a dot in front, which nobody reads and `tidy` removes. Only
local and POSIX-like shared file systems are meant.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError


def partial_of(path: Path) -> Path:
    """Where something is written before it is renamed to `path`."""
    return path.with_name(f".{path.name}.partial")


def _old_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A partial path next to `path` to write to; renamed over it at the end, removed if something goes wrong.

    Works for a file and for a folder. A crash leaves at most the partial, which the next writer of that name removes.
    """
    path = path.resolve() if path.is_symlink() else path
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
    """Rename `partial` to `path`. A folder that is there already steps aside for the moment between two renames."""
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
    _sync_folder(path.parent)


def recover(path: Path) -> None:
    """Give a folder its name back if a crash came between the two renames of `put_in_place`."""
    if not os.path.lexists(path) and _old_of(path).is_dir():
        os.rename(_old_of(path), path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; nothing if there is none. A folder loses its name first, at once."""
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
    """Delete what a crash has left in a folder."""
    for suffix in ("partial", "old", "deleted"):
        for leftover in folder.glob(f".*.{suffix}"):
            remove(leftover)


def link(name: Path, target: Path) -> None:
    """Let `name` stand for `target`, its neighbour: in one step from the old target to the new.

    A file gets a second name, which survives being moved; a folder, or a file where the file system knows one name
    only, a symbolic link.
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
    partial.unlink(missing_ok=True)  # it stays where both are names of one file already


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: BaseException) -> str:
    """An error of the system in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def report_write_errors(what: str, path: Path) -> Iterator[None]:
    """Tell the user of a file or folder that could not be written.

    Raises:
        UserError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(what, f"{path} could not be written: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of a run so that a reader sees the old text or the new, never half of it.

    Raises:
        UserError: it could not be written; what was there is untouched.
    """
    with report_write_errors("--runs_dir", path), atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
        sync_file(partial)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as JSON, atomically; NaN becomes null."""
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
