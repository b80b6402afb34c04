"""Several processes give the answers of one, and none outlives an error."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest

from lit_probsft import UserError
from lit_probsft.evaluation.generation import pool as module
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.generation.pool import Pool
from lit_probsft.evaluation.generation.requests import Answer, Backend, Draw, Request
from tests.evaluation.generation import test_local
from tests.evaluation.generation.test_local import Ids, family


@dataclass
class Echo(Backend):
    """Answers with its device and the prompt, quickly and without a model."""

    device: str

    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        for request in requests:
            if request.max_new_tokens == 0:
                raise {"user": UserError("MODEL", "too small"), "bug": KeyError("x")}[self.device]
            if request.max_new_tokens < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            for draw in request.draws:
                yield Answer(request.index, draw.sample, f"{self.device} {request.prompt}", os.getpid(), "stop")

    def describe(self) -> Mapping[str, Any]:
        return {"name": "echo", "device": self.device}


def requests(count: int, max_new_tokens: int = 9) -> list[Request]:
    draws = [Draw(sample, sample, 1.0) for sample in range(16)]
    return [Request(index, [], [index] * (1 + index % 3), draws, max_new_tokens) for index in range(count)]


def gone(pids: Sequence[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


class Threads:
    """Stands for `multiprocessing`'s context, with threads, which start at once."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process(threading.Thread):
        def __init__(self, target: Any, args: tuple[Any, ...], **options: Any) -> None:
            theirs = Connection(os.dup(args[-1].fileno()))  # the parent closes its own
            super().__init__(target=target, args=(*args[:-1], theirs), **options)

        def kill(self) -> None:
            """Ends when its connection does."""

        def join(self, timeout: float | None = None) -> None:
            pass


def test_each_answer_comes_once_and_both_processes_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: Threads)
    monkeypatch.setattr(module, "run_in_worker", lambda call, *args: pickle.loads(call)(*args))
    pool = Pool(Echo, ["a", "b"])
    for count in (7, 0, 2):  # the processes are used again
        found = list(pool.answer(requests(count)))
        assert sorted((answer.index, answer.sample) for answer in found) == [
            (index, sample) for index in range(count) for sample in range(16)
        ]
        assert {answer.text[0] for answer in found} == ({"a", "b"} if count else set())
        assert all(answer.text[2:] == str([answer.index] * (1 + answer.index % 3)) for answer in found)
    assert pool.describe() == {"name": "echo", "device": "a,b"}
    pool.close()


def local_backend(device: str) -> LocalBackend:
    return LocalBackend(family("Llama").to(device), Ids())


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one() -> None:
    asked = test_local.requests()
    pool = Pool(local_backend, ["cpu", "cpu"])
    found = sorted(pool.answer(asked), key=lambda answer: (answer.index, answer.sample))
    pool.close()
    assert found == [answer for _, answer in sorted(test_local.answers(family("Llama"), asked).items())]


@pytest.mark.slow
def test_processes_end_with_an_answer_that_nobody_takes() -> None:
    pool = Pool(Echo, ["a", "b"])
    running = pool.answer(requests(4))
    pids = [next(running).tokens for _ in range(40)]
    running.close()  # type: ignore[attr-defined]  # it is a generator
    assert gone(pids)
    assert len(list(pool.answer(requests(2)))) == 32  # others start
    pool.close()


@pytest.mark.slow
def test_errors_in_a_process_are_named() -> None:
    for device, limit, kind, message in (
        ("user", 0, UserError, "MODEL: too small"),
        ("bug", 0, RuntimeError, r"(?s)in the process answers-bug:.*KeyError: 'x'"),
        ("gpu", -1, UserError, "devices: the process for gpu was killed by SIGKILL; it may have run out of memory"),
    ):
        pool = Pool(Echo, [device])
        answers = pool.answer([*requests(1), *requests(1, limit)])
        found = []
        with pytest.raises(kind, match=message):
            found.extend(answers)
        assert gone([answer.tokens for answer in found])
        assert not pool._workers
