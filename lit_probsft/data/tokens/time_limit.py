"""Stops code of others that never ends, in any thread of any process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.c_void_p)

_lock = threading.Lock()
_deadlines: dict[int, float] = {}  # by thread
_watch: threading.Thread | None = None
_POLL = 0.2  # seconds


class TimeLimitError(BaseException):
    """The block took too long. Not an `Exception`, so that the code in the block does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitError` in this block once it has run for `seconds`.

    One thread watches all blocks, so that a block costs microseconds. It cannot interrupt a single call into C.
    A block within another one changes nothing.
    """
    thread = threading.get_ident()
    if thread in _deadlines:
        yield
        return
    _deadlines[thread] = time.monotonic() + seconds
    if _watch is None or not _watch.is_alive():  # after a fork, only the forking thread is left
        _start_watch()
    try:
        yield
    finally:
        with _lock:
            if _deadlines.pop(thread, None) is None:
                _raise_in_thread(thread, None)  # if it has not been raised by now, it never is


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    _deadlines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _start_watch() -> None:
    global _watch
    with _lock:
        if _watch is None or not _watch.is_alive():
            _watch = threading.Thread(target=_stop_late_blocks, daemon=True, name="time-limit")
            _watch.start()


def _stop_late_blocks() -> None:
    while True:
        time.sleep(_POLL)
        now = time.monotonic()
        with _lock:
            for thread in [thread for thread, end in list(_deadlines.items()) if end < now]:
                del _deadlines[thread]
                _raise_in_thread(thread, id(TimeLimitError))
