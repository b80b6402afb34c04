"""Injects faults into a run's own process: death at a chosen system call, a full disk, a read-only folder."""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = ("rename", "replace", "link", "symlink", "unlink", "rmdir", "mkdir", "fsync")


def install(
    *,
    folder: str = "",
    note: str = "",
    die_at: tuple[str, int] | None = None,
    pause: float = 0.0,
    file_limit: int | None = None,
    no_privileges: bool = False,
    patience: float | None = None,
    limits: bool = False,
) -> None:
    """Install the faults in the current process, before the run starts.

    Args:
        folder: where system calls are watched. A run can die at a point before and after each call, and at one within
            the first, eighth, 64th and 512th write to a file.
        note: a file that lists the points reached, to be read after the run has died.
        die_at: the name of a point, and at which of its occurrences, from 1, all processes of the session are killed.
        pause: seconds to sleep at each point, so that kills by the clock often hit one.
        file_limit: maximum size of a file in bytes; a larger write fails, as on a full disk.
        no_privileges: drop root's capabilities, so that permissions apply to root too.
        patience: seconds that ranks have to end by themselves.
        limits: allow 3 GiB of new memory, 30 s of the CPU, 64 MiB per file and 40 processes.
    """
    if patience is not None:
        from lit_probsft.parallel import processes

        processes._PATIENCE = patience
    if no_privileges:
        _drop_privileges()
    if file_limit is not None:
        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # by default the signal would kill the process; ignored, the write fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if limits:
        _limit()
    if folder and note:
        _Watch(Path(folder), note, die_at, pause).install()


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for kind, most in (
        (resource.RLIMIT_AS, size + 3 * 2**30),
        (resource.RLIMIT_CPU, 30),
        (resource.RLIMIT_FSIZE, 64 * 2**20),
    ):
        resource.setrlimit(kind, (most, most))
    left = [40]
    fork = os.fork

    def limited() -> int:
        left[0] -= 1
        if left[0] < 0:
            os._exit(97)
        return fork()

    os.fork = limited


class _Watch:
    def __init__(self, folder: Path, note: str, die_at: tuple[str, int] | None, pause: float) -> None:
        self.folder, self.die_at, self.pause = str(folder), die_at, pause
        self.lock, self.saving, self.seen = threading.RLock(), 0, 0
        self.note = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def install(self) -> None:
        import lit_probsft.run.export as export
        from lit_probsft.run.model_exports import ModelExports
        from lit_probsft.storage import checkpoint_writing
        from lit_probsft.training.checkpoints import Checkpoints

        for name in _CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        builtins.open = self.opens(builtins.open)  # type: ignore[assignment]
        io.open = self.opens(io.open)  # type: ignore[assignment]
        for owner, name in (
            (Checkpoints, "on_train_start"),
            (Checkpoints, "save"),
            (Checkpoints, "flush"),
            (ModelExports, "_export"),
            (checkpoint_writing, "write_file"),
            (export, "_write_folder"),
        ):
            setattr(owner, name, self.marked(getattr(owner, name)))

    def marked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def saves(*args: Any, **options: Any) -> Any:
            with self.lock:
                self.saving += 1
            self.write("begin")
            try:
                return function(*args, **options)
            finally:
                with self.lock:
                    self.saving -= 1
                self.write("end")

        return saves

    def write(self, what: str) -> None:
        os.write(self.note, f"{'saving' if self.saving else 'training'} {what}\n".encode())

    def point(self, what: str, before_dying: Callable[[], Any] = lambda: None) -> None:
        what = re.sub(r"\d+", "N", what)
        with self.lock:
            self.write(what)
            if self.die_at and what == self.die_at[0]:
                self.seen += 1
                if self.seen == self.die_at[1]:
                    before_dying()
                    os.killpg(os.getpgrp(), signal.SIGKILL)
                    signal.pause()  # the kill may take a moment
        time.sleep(self.pause)

    def inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path relative to the folder; None if it is outside the folder."""
        if isinstance(path, int):
            path, dir_fd = "", path
        base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        full = os.path.normpath(os.path.join(base, path))
        return os.path.relpath(full, self.folder) if f"{full}/".startswith(f"{self.folder}/") else None

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *args: Any, **options: Any) -> Any:
            where = self.inside(path, options.get("dir_fd"))
            if where is None:
                return call(path, *args, **options)
            self.point(f"before {name} {where}")
            result = call(path, *args, **options)
            self.point(f"after {name} {where}")
            return result

        return watched

    def opens(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = call(path, mode, *args, **options)
            where = None if isinstance(path, int) or mode[0] == "r" else self.inside(path)
            return file if where is None else _File(file, where, self)

        return watched


class _File:
    """A file during whose writes a run can die, leaving half of the bytes."""

    def __init__(self, file: Any, where: str, watch: _Watch) -> None:
        self._file, self._where, self._watch, self._writes = file, where, watch, 0

    def write(self, data: Any) -> Any:
        self._writes += 1
        if self._writes in (1, 8, 64, 512):
            self._watch.point(f"within {self._where}", lambda: self._half(data))
        return self._file.write(data)

    def _half(self, data: Any) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _drop_privileges() -> None:
    """Drop root's capabilities, which makes root an ordinary user."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
        if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
            raise OSError(ctypes.get_errno(), "capset")
