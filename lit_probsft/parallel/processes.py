"""The processes of one run: they start together, end together, and report an error once."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
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
from typing_extensions import override

from lit_probsft.errors import first_rank
from lit_probsft.parallel.parent import PARENT
from lit_probsft.parallel.stopping import INTERRUPTED, STOPPED

_PATIENCE = 30.0
"""Seconds in which ranks may end by themselves after one of them has failed."""
_PATIENCE_BEFORE_CONNECTION = 5.0
"""The same if a signal has stopped one of them before the process group exists. The others would wait for it there."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, except that the other processes are not killed at once when one has failed.

    They have time to end by themselves, with their own exit status. No process outlives the first one.
    """

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            self._call_children_scripts()
            _CHILDREN.extend(self.procs)
            atexit.register(end_children, _PATIENCE)  # they are killed when this process is gone
            threading.Thread(target=_observe, args=(self.procs,), daemon=True, name="observer").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def use_launcher(strategy: Any) -> None:
    """Replace Lightning's launcher by ours, if the strategy starts its own processes."""
    launcher = strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


_CHILDREN: list[subprocess.Popen[Any]] = []


def end_children(patience: float) -> None:
    """Wait for the processes that this one started; kill them after `patience` seconds."""
    deadline = time.monotonic() + patience
    for process in _CHILDREN:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _CHILDREN.clear()


def _stopped_child() -> int | None:
    """The exit status of a run in which a signal has stopped a process that this one started; None without one."""
    statuses = {STOPPED: STOPPED, -signal.SIGTERM: STOPPED, INTERRUPTED: INTERRUPTED, -signal.SIGINT: INTERRUPTED}
    return next((statuses[code] for process in _CHILDREN if (code := process.poll()) in statuses), None)


_STOPPED_ELSEWHERE = "lit_probsft: stopped by a signal to another rank"


def _connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _observe(processes: list[subprocess.Popen[Any]]) -> None:
    """Wait until a process fails, then kill the others and this process, unless they end by themselves."""
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes, 1) if code]
        if failed:
            break
        if all(code == 0 for code in codes):
            return
    rank, code = failed[0]
    stopped = None if _connected() else _stopped_child()
    deadline = time.monotonic() + (_PATIENCE if stopped is None else _PATIENCE_BEFORE_CONNECTION)
    while time.monotonic() < deadline:  # usually this process ends meanwhile, and this thread with it
        time.sleep(0.5)
    message = f"lit_probsft: rank {rank} ended with status {code}, and the others did not end"
    print(message if stopped is None else _STOPPED_ELSEWHERE, file=sys.stderr)
    for process in processes:
        with contextlib.suppress(OSError):
            process.kill()
    sys.stderr.flush()
    os._exit(stopped or (code if 0 < code < 128 or code in (STOPPED, INTERRUPTED) else 1))


def first_to_fail(status: int) -> tuple[bool, int]:
    """Whether this rank failed first, and the exit status of the rank that did.

    Only the first rank reports its error. The others have failed in the same way, or have lost the connection to it.
    """
    if not _connected():
        return first_rank(), status
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        if store.add("lit_probsft/failed", 1) == 1:
            store.set("lit_probsft/status", str(status))
            return True, status
        return False, int(store.get("lit_probsft/status"))
    except Exception:  # the rank that holds the store has gone
        return False, status


_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|socket|remote process|peer|store|collective", re.IGNORECASE
)


def report(error: BaseException, status: int, message: str | None) -> int:
    """Print the error that ends this process, unless another rank has failed before; return the exit status.

    Args:
        error: ends this process.
        status: the exit status if this rank failed first.
        message: one line to print; None prints a traceback.
    """
    lost = message is None and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    if lost and (_CHILDREN or _connected()):
        time.sleep(1)  # the rank that failed first may still be on its way here
        if (stopped := _stopped_child()) is not None:
            status, message = stopped, _STOPPED_ELSEWHERE
    first, status = first_to_fail(status)
    if first:
        if message is not None:
            print(message, file=sys.stderr)
        elif lost and _connected():
            print(
                f"lit_probsft: another rank died without an error message (killed, or out of memory?): {error}",
                file=sys.stderr,
            )
        else:
            traceback.print_exception(error)
        sys.stderr.flush()
    return status
