"""Entries of a cache: folders that several processes may create, check, open and remove at the same time."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.atomic import partial_of, remove, report_write_errors, sync_file, sync_folder, tidy
from lit_probsft.storage.checkpoint_files import folder_damage, manifest_entry, write_manifest

_T = TypeVar("_T")
_ATTEMPTS = 5


def open_entry(
    folder: Path, read: Callable[[Path], _T], write: Callable[[Path], Any], argument: str, *, contents: bool = True
) -> _T:
    """Return `read(folder)`; `write(folder)` comes first if the entry is missing or damaged.

    Args:
        folder: the entry.
        read: opens an intact entry.
        write: creates the entry with `create_folder`.
        argument: the option that names the cache, for errors.
        contents: read every file to check it; otherwise check only the sizes.

    Raises:
        UserError: the entry cannot be read, a damaged one cannot be removed, or other processes keep removing it.
    """
    for _ in range(_ATTEMPTS):
        if os.path.lexists(folder):
            try:
                wrong = folder_damage(folder, contents=contents)
                if wrong is None:
                    return read(folder)
            except FileNotFoundError:  # another process has removed it
                continue
            except OSError as error:
                raise UserError(argument, f"{folder} could not be read: {first_line(error)}") from error
            _discard(folder, wrong, argument)
        write(folder)
        contents = False
    raise UserError(argument, f"{folder} could not be opened: other processes keep removing it")


def _discard(folder: Path, wrong: str, argument: str) -> None:
    from lightning.pytorch.utilities import rank_zero_warn

    if not os.path.lexists(folder):
        return
    rank_zero_warn(f"{argument}: {folder} is damaged and made again: {wrong}")
    with report_write_errors(argument, folder):
        try:
            remove(folder)
        except OSError:
            if os.path.lexists(folder):  # otherwise another process has removed it
                raise


@contextlib.contextmanager
def create_folder(folder: Path, argument: str) -> Iterator[Path]:
    """Yield a folder to write to; sync it and rename it to `folder` at the end, or remove it after an error.

    Several processes may create the same folder: the first one wins, and the work of the others is deleted. What a
    killed process left is removed by the next one that creates a folder here while no other process does.

    Raises:
        UserError: an OSError within, reported as an error of `argument`.
    """
    with report_write_errors(argument, folder), _tidy_and_lock(folder.parent):
        unfinished = partial_of(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}"))
        unfinished.mkdir()  # unlike tempfile's folders, readable by others as the umask says
        try:
            yield unfinished
            entries = {}
            for file in sorted(file for file in unfinished.rglob("*") if file.is_file()):
                sync_file(file)
                entries[file.relative_to(unfinished).as_posix()] = manifest_entry(file)
            write_manifest(unfinished, "cache", 1, entries)
            sync_folder(unfinished)
            try:
                os.rename(unfinished, folder)
            except OSError:
                if not folder.is_dir():
                    raise
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _tidy_and_lock(folder: Path) -> Iterator[None]:
    """Share a lock with all processes that write here. The only one of them first removes what killed ones left."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # others are writing, or the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tidy(folder)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
