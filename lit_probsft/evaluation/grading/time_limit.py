"""Runs functions that may never return, in worker processes with a limit on time and memory."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

T = TypeVar("T")

MOST_WORKERS = min(8, os.cpu_count() or 1)
"""The most calls that run at a time. Others wait, and their time does not run."""
MEMORY = 2 << 30
"""Bytes of address space of a worker."""
_START = 60.0
"""Seconds for a worker to start and import the function."""


class OutOfTime(TimeoutError):
    """The function did not return in time."""


class WorkerDied(RuntimeError):
    """The process that ran the function ended."""


def limited(function: Callable[..., T], *args: Any, seconds: float = 5.0) -> T:
    """Call a function in a worker process, and return what it returns.

    Workers are kept for later calls. They are new interpreters and no forks, so this is safe in a process with threads
    or CUDA. May be called from any thread, and from several at once.

    Args:
        function: of a module; not of the script that Python runs.
        args: as the function takes them. They and the result are pickled.
        seconds: for the function itself; its imports do not count.

    Raises:
        OutOfTime: the function did not return in time.
        WorkerDied: the process ended, for example by a stack overflow, or cannot start.
        Exception: what the function raises; MemoryError where it needs more than `MEMORY`.
    """
    call = pickle.dumps((sys.path, seconds, pickle.dumps((function, args))))
    pool = _pool
    with pool.slots:
        try:
            worker = pool.take()
        except OSError as refusal:
            raise WorkerDied(f"the worker process cannot start: {refusal}") from refusal
        try:
            result, error = worker.run(call, seconds)
        except BaseException:  # also Ctrl-C: the worker is busy
            pool.end(worker)
            raise
        if isinstance(error, MemoryError):  # what it still holds may be why
            pool.end(worker)
        else:
            pool.idle.append(worker)
    if error is not None:
        raise error
    return cast(T, result)


class _Worker:
    """A process that calls functions, one after the other."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), *map(str, sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what libraries print is no answer
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent
            )

    def run(self, call: bytes, seconds: float) -> Any:
        """The result and the error of a call; one is None."""
        try:
            self.connection.send_bytes(call)
            reply = self._receive(_START)
            if not reply:  # the function is loaded and its time begins
                reply = self._receive(seconds)
        except OutOfTime:
            raise
        except (EOFError, OSError):
            status = self.process.wait()
            if status == -signal.SIGALRM:
                raise OutOfTime(f"no result within {seconds:g} s") from None
            raise WorkerDied(f"the worker process ended with exit status {status}") from None
        return pickle.loads(reply)

    def _receive(self, seconds: float) -> bytes:
        if not self.connection.poll(seconds):
            raise OutOfTime(f"no result within {seconds:g} s")
        return self.connection.recv_bytes()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class _Pool:
    """The workers of this process."""

    def __init__(self) -> None:
        self.slots = threading.BoundedSemaphore(MOST_WORKERS)
        self.workers: set[_Worker] = set()
        self.idle: list[_Worker] = []

    def take(self) -> _Worker:
        with contextlib.suppress(IndexError):  # none is idle
            while (worker := self.idle.pop()).process.poll() is not None:
                self.end(worker)  # it was killed since its last call
            return worker
        worker = _Worker()
        self.workers.add(worker)
        return worker

    def end(self, worker: _Worker) -> None:
        self.workers.discard(worker)
        worker.end()

    def close(self) -> None:
        for worker in [*self.workers]:
            self.end(worker)


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _leave_to_parent() -> None:
    """After a fork: the workers belong to the parent, and end when no process holds their connections."""
    global _pool
    for worker in _pool.workers:
        worker.connection.close()
    _pool = _Pool()


os.register_at_fork(after_in_child=_leave_to_parent)

# A worker imports no module of the script that runs, unlike a process of `multiprocessing`.
_SERVE = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import serve; serve(int(sys.argv[1]))"


def serve(descriptor: int) -> None:
    """Answer calls until the parent closes the connection. This is what a worker runs."""
    _limit_memory()
    connection = Connection(descriptor)
    while True:
        try:
            path, seconds, call = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):  # the parent ended
            return
        sys.path[:] = path
        try:
            function, args = pickle.loads(call)
            connection.send_bytes(b"")
            # If the parent is killed, nobody ends this call. No handler: the kernel ends the process, even inside C.
            signal.setitimer(signal.ITIMER_REAL, seconds + 1)
            reply = pickle.dumps((function(*args), None))
        except Exception as error:
            reply = _pickled(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(reply)


def _pickled(error: Exception) -> bytes:
    """A pickled reply with the error, or with its text if it cannot be pickled."""
    try:
        reply = pickle.dumps((None, error))
        pickle.loads(reply)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return reply


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # a system without such a limit, or with a lower one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
