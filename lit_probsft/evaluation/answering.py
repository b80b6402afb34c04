"""Asks a backend for the answers that are missing, grades them and stores them as they come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import timedelta
from queue import SimpleQueue

from lit_probsft.evaluation.evaluation import Evaluation, Row, key_of
from lit_probsft.evaluation.generation.requests import Answer, Backend
from lit_probsft.evaluation.store import Store

_GRADERS = 4
_BACKLOG = 64
"""Answers that may wait for their grade; they are lost if the process is killed."""
_PATIENCE = 3.0
"""Seconds that graders have to finish when the command is stopped."""
_LINE_SECONDS = 30.0
"""Between two lines of progress, where stderr is not a terminal."""


def answer_all(evaluation: Evaluation, backend: Backend, store: Store) -> int:
    """Make and grade the answers that are missing; returns how many tokens were generated.

    Whatever ends this early, every answer that was graded is stored.

    Raises:
        UserError: an answer cannot be stored, or made.
    """
    done = store.answers.objects
    for row in evaluation.too_long:
        if key_of(row) not in done:
            store.answers.append(row)
    requests = evaluation.remaining(done.keys())
    progress = _Progress(sum(len(request.draws) for request in requests))

    def work(answer: Answer) -> None:
        row = evaluation.grade(answer)
        store.answers.append(row)
        progress.add(row)

    pending: set[Future[None]] = set()
    if not requests:
        return 0
    graders = _Graders(work)
    try:
        with progress:
            for answer in backend.answer(requests):
                pending = _checked({*pending, graders.submit(answer)}, _BACKLOG)
            _checked(pending, 0)
    except BaseException:
        wait(pending, _PATIENCE)
        raise
    finally:
        graders.close()
    return progress.tokens


def _checked(pending: set[Future[None]], most: int) -> set[Future[None]]:
    """Wait until at most so many are left; raise what one of the others has raised."""
    while True:
        done, pending = wait(pending, None if len(pending) > most else 0, FIRST_COMPLETED)
        for future in done:
            future.result()
        if len(pending) <= most:
            return pending


class _Graders:
    """Threads that work on answers. They are daemons: the end of the process does not wait for a grader that hangs."""

    def __init__(self, work: Callable[[Answer], None]) -> None:
        self._work = work
        self._queue: SimpleQueue[tuple[Future[None], Answer | None]] = SimpleQueue()
        self._closed = threading.Event()
        for _ in range(_GRADERS):
            threading.Thread(target=self._serve, daemon=True).start()

    def submit(self, answer: Answer) -> Future[None]:
        future: Future[None] = Future()
        self._queue.put((future, answer))
        return future

    def _serve(self) -> None:
        while True:
            future, answer = self._queue.get()
            if answer is None or self._closed.is_set():
                return
            try:
                future.set_result(self._work(answer))
            except BaseException as error:
                future.set_exception(error)

    def close(self) -> None:
        """Leave the answers that no thread works on."""
        self._closed.set()
        for _ in range(_GRADERS):
            self._queue.put((Future(), None))


class _Progress:
    """The number of answers, tokens per second and the time left, on stderr."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.total, self.done, self.tokens = total, 0, 0
        self._lock = threading.Lock()
        self._start = self._said = time.monotonic()
        columns = (TextColumn("evaluate"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._bar.add_task(self._line(), total=total)

    def __enter__(self) -> None:
        self._bar.start()
        if self._bar.disable:
            self._say()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self.done:
            self._say()

    def add(self, row: Row) -> None:
        with self._lock:
            self.done, self.tokens = self.done + 1, self.tokens + row["tokens"]
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=self._line())
            if self._bar.disable and time.monotonic() - self._said > _LINE_SECONDS:
                self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        print(self._line(), file=sys.stderr)

    def _line(self) -> str:
        text = f"{self.done} of {self.total} answers"
        if not self.done:
            return text
        seconds = time.monotonic() - self._start
        left = timedelta(seconds=round(seconds / self.done * (self.total - self.done)))
        ahead = f", about {left} left" if self.done < self.total else f" in {timedelta(seconds=round(seconds))}"
        return f"{text}, {self.tokens / seconds:.0f} tokens/s{ahead}"
