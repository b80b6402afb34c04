"""Ends a process together with the process that started it.

A parent that is killed cannot end its children, and a child may wait for it forever, for example in a collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PARENT = "LIT_PROBSFT_PARENT"
"""Environment variable with the process that started this rank. It waits for its ranks before it ends."""

_PR_SET_PDEATHSIG = 1


def exit_with_launcher() -> None:
    """End this rank at once when the process that started it ends; elsewhere it does nothing.

    Call it before heavy imports, during which the parent may already die.
    """
    parent = os.environ.get(PARENT, "")
    if parent.isdigit() and int(parent) != os.getpid() and os.environ.get("LOCAL_RANK", "0") != "0":
        _exit_with(int(parent))


def exit_with_parent(*_: object) -> None:
    """End this worker process when the process that uses it ends.

    Call it in a process of `multiprocessing`; elsewhere it does nothing. The fork server that started a worker does
    not count as its parent. Arguments are ignored, so that this can be a `DataLoader`'s `worker_init_fn`.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    if os.getppid() == parent.pid:
        _exit_with(parent.pid)
    else:
        _exit_after(parent.join)


def run_in_worker(call: bytes, *args: Any) -> Any:
    """Call a pickled function in a new worker process, which ends with its parent and leaves Ctrl-C to it.

    The function is pickled so that the modules it needs are imported after the process follows its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
    return pickle.loads(call)(*args)


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Start a process in this block that leaves Ctrl-C to this one from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with(pid: int) -> None:
    """Let the kernel kill this process when its parent ends; without Linux, a thread looks every second."""

    def wait() -> None:
        while os.getppid() == pid:
            time.sleep(1)

    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
        if os.getppid() != pid:  # it ended before the call
            os._exit(1)
    else:
        _exit_after(wait)


def _exit_after(wait: Callable[[], None]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="exit-with-parent").start()
