"""Ends a process together with the process that started it.

A parent that is killed cannot end its children, and a child may wait for it forever, for example in a collective.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable


def exit_with_parent(*_: object) -> None:
    """End this worker process when the process that uses it ends.

    Call it in a process of `multiprocessing`; elsewhere it does nothing. The fork server that started a worker does
    not count as its parent. Arguments are ignored, so that this can be a `DataLoader`'s `worker_init_fn`.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _exit_after(parent.join)


def exit_with_process(pid: int, patience: float) -> None:
    """End this process `patience` seconds after its parent has ended.

    Args:
        pid: the parent, which started this process with `subprocess`.
        patience: in seconds; a parent that ends normally lets this process end by itself.
    """

    def wait() -> None:
        while os.getppid() == pid:
            time.sleep(1)
        time.sleep(patience)

    _exit_after(wait)


def _exit_after(wait: Callable[[], None]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="exit-with-parent").start()
