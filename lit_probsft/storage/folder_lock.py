"""Locks folders, so that two processes do not write to the same one."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError

NAME = ".lock"
"""The file in a folder that its owner has locked."""

_LOCKS: dict[Path, Any] = {}
"""Open lock files by folder; closing one unlocks its folder."""


def lock_folder(folder: Path, argument: str, problem: str) -> None:
    """Lock an existing folder until this process ends in whatever way, or unlocks it.

    Args:
        folder: to lock; nothing happens if this process has locked it already.
        argument: names the folder in the error.
        problem: what the error says.

    Raises:
        UserError: another process has locked it.
        OSError: the lock file cannot be written.
    """
    if folder.resolve() in _LOCKS:
        return
    file = open(folder / NAME, "a")  # noqa: SIM115 (closing it would unlock the folder)
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not a POSIX system
        pass
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise UserError(argument, problem) from error
    _LOCKS[folder.resolve()] = file


def lost_lock(folder: Path) -> bool:
    """Whether a folder that this process has locked was removed or replaced since."""
    if (file := _LOCKS.get(folder.resolve())) is None:
        return False
    with contextlib.suppress(OSError):
        return not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / NAME))
    return True


def unlock_folder(folder: Path) -> None:
    """Unlock a folder, if this process has locked it."""
    if (file := _LOCKS.pop(folder.resolve(), None)) is not None:
        file.close()


def unlock_folders() -> None:
    """Unlock all folders that this process has locked."""
    while _LOCKS:
        _LOCKS.popitem()[1].close()
