"""Generates answers in several processes, one for each device."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation.requests import Answer, Backend, Request
from lit_probsft.parallel.parent import run_in_worker, without_ctrl_c

_SMALLEST = 16
"""Answers of the smallest group of requests: smaller batches take nearly as long."""


class Pool(Backend):
    """Generates answers with a backend in each of several processes.

    Requests are handed out in groups, first large and then small ones, so that all processes end at about the same
    time. The processes start at the first call and end with `close`, an error, or this process.

    Args:
        load: builds the backend in a process, from the name of its device. Picklable.
        devices: one for each process, such as `cuda:0`. They share the threads of this one.
    """

    def __init__(self, load: Callable[[str], Backend], devices: Sequence[str]) -> None:
        self._load, self.devices = load, list(devices)
        self._workers: list[_Worker] = []

    @override
    def describe(self) -> Mapping[str, Any]:
        return {**self._started()[0].description, "device": ",".join(self.devices)}

    @override
    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """As in `Backend`.

        Raises:
            UserError: a process died, or could not load its backend.
            RuntimeError: a process failed in another way; the message has its traceback.
        """
        groups = self._groups(requests)
        try:
            busy = {worker.connection: worker for worker in self._started() if worker.begin(next(groups, None))}
            while busy:
                for connection in wait(list(busy)):
                    worker = busy[cast(Connection, connection)]
                    if (answer := worker.receive()) is not None:
                        yield answer
                    elif not worker.begin(next(groups, None)):
                        del busy[worker.connection]
        except BaseException:
            self.close()  # the processes are at work on what nobody waits for
            raise

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        waiting = sorted(requests, key=lambda request: -len(request.prompt))
        smallest = min(_SMALLEST, math.ceil(sum(len(request.draws) for request in waiting) / len(self.devices)))
        while waiting:
            size = draws = 0
            while size < len(waiting) and (size < len(waiting) / len(self.devices) / 2 or draws < smallest):
                draws += len(waiting[size].draws)
                size += 1
            yield waiting[:size]
            del waiting[:size]

    def _started(self) -> list[_Worker]:
        if not self._workers:
            threads = max(1, torch.get_num_threads() // len(self.devices))
            self._workers = [_Worker(self._load, device, threads) for device in self.devices]
            for worker in self._workers:
                worker.description = worker.receive()
        return self._workers

    @override
    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []


class _Worker:
    """A process and the connection to it."""

    def __init__(self, load: Callable[[str], Backend], device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.device, (self.connection, theirs) = device, context.Pipe()
        call = pickle.dumps(partial(_serve, pickle.dumps(partial(load, device)), threads))
        self.process = context.Process(target=run_in_worker, args=(call, theirs), daemon=True, name=f"answers-{device}")
        with without_ctrl_c():
            self.process.start()
        theirs.close()
        self.description: Mapping[str, Any] = {}

    def begin(self, group: Sequence[Request] | None) -> bool:
        """Send a group of requests, if there is one."""
        if group is not None:
            with contextlib.suppress(OSError):  # it died, which is seen when it should answer
                self.connection.send(group)
        return group is not None

    def receive(self) -> Any:
        """The next message: a description first, then answers, and None when a group is finished."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            problem = f"the process for {self.device} {how}; it may have run out of memory"
            raise UserError("devices", problem) from None
        if isinstance(message, Exception):
            raise message
        return message


def _serve(call: bytes, threads: int, connection: Connection) -> None:
    """The work of a process: answer groups of requests until the connection ends."""
    torch.set_num_threads(threads)
    try:
        backend = pickle.loads(call)()
        connection.send(backend.describe())
        while True:
            for answer in backend.answer(connection.recv()):
                connection.send(answer)
            connection.send(None)
    except EOFError:
        return
    except UserError as error:
        connection.send(error)
    except Exception:
        name = multiprocessing.current_process().name
        connection.send(RuntimeError(f"in the process {name}:\n{traceback.format_exc()}"))
