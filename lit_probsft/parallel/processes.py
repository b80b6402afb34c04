"""Processes of one run: start, end and report together."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lit_probsft.errors import first_rank
from lit_probsft.parallel.parent import exit_with_process

STOPPED = 143
"""Exit status of a run that a signal has stopped, 128 + SIGTERM: what schedulers take for "not finished"."""


INTERRUPTED = 130
"""Exit status of a run that Ctrl-C has stopped, 128 + SIGINT, as shells expect it."""


_PATIENCE = 30.0
"""Seconds that ranks are given to end by themselves after one of them has failed."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher with another observer: when a process has failed, the others may end by themselves first,
    with their own exit status; after that they are killed. Nobody outlives the first process."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, then call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            _CHILDREN.extend(self.procs)
            threading.Thread(target=_observe, args=(self.procs,), daemon=True, name="observer").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


_PARENT = "LIT_PROBSFT_PARENT"


_CHILDREN: list[subprocess.Popen[Any]] = []


def end_children(patience: float) -> None:
    """Wait for the processes that this one has started; after `patience` seconds end them."""
    deadline = time.monotonic() + patience
    for process in _CHILDREN:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _CHILDREN.clear()


def _observe(processes: list[subprocess.Popen[Any]]) -> None:
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes, 1) if code]
        if failed:
            break
        if all(code == 0 for code in codes):
            return
    rank, code = failed[0]
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:  # this process usually ends meanwhile, and this thread with it
        time.sleep(0.5)
    print(f"lit_probsft: rank {rank} ended with status {code}, the others did not end by themselves", file=sys.stderr)
    for process in processes:
        with contextlib.suppress(OSError):
            process.kill()
    sys.stderr.flush()
    os._exit(code if 0 < code < 128 or code in (STOPPED, INTERRUPTED) else 1)


def follow_parent() -> None:
    """End this process when the `Launcher` process that started it is gone, even from within a collective."""
    parent = os.environ.get(_PARENT)
    if parent is not None and os.environ.get("LOCAL_RANK", "0") != "0" and os.getppid() == int(parent):
        exit_with_process(int(parent), _PATIENCE)


def first_to_fail(status: int) -> tuple[bool, int]:
    """Is this the rank that failed first, and the exit status of the one that did?

    The first tells the user; those that only lost their connection to it, or failed just like it, are silent.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return first_rank(), status
    try:
        store = distributed.distributed_c10d._get_default_store()
        if store.add("lit_probsft/failed", 1) == 1:
            store.set("lit_probsft/status", str(status))
            return True, status
        return False, int(store.get("lit_probsft/status"))
    except Exception:  # whoever kept the store has failed and gone before
        return False, status


_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|socket|remote process|peer|store|collective", re.IGNORECASE
)


def report(error: BaseException, status: int, message: str | None) -> int:
    """Tell the user about the error that ends this process, if nobody has; returns the exit status.

    Args:
        error: what happened.
        status: the exit status if it happened here first.
        message: one line for an error that the user can mend; None for a traceback.
    """
    lost = message is None and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if lost and several:
        time.sleep(1)  # whoever failed first may not have said so yet
    first, status = first_to_fail(status)
    if first:
        if message is not None:
            print(message, file=sys.stderr)
        elif lost and several:
            print(
                f"lit_probsft: another rank has died without a word (killed, or out of memory?): {error}",
                file=sys.stderr,
            )
        else:
            traceback.print_exception(error)
        sys.stderr.flush()
    return status
