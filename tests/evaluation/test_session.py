"""An evaluation that is stopped anywhere ends with the same numbers, and no answer is made twice."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.data import ByteTokenizer, tokenize_conversation
from lit_probsft.errors import UserError
from lit_probsft.evaluation.evaluation import Evaluation
from lit_probsft.evaluation.generation.requests import Answer, Request
from lit_probsft.evaluation.grading import Grade
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.store import Store
from lit_probsft.parallel.stopping import StoppedBySignal
from lit_probsft.storage import json_lines
from tests.evaluation.scene import SAMPLED, TASKS, Random, Sums, answers_of, measure, outcome

ANSWERS = 12 * 4


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Versions of packages take half of the time of an evaluation without a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_probsft.evaluation.session.versions", dict)
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "x.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of an evaluation that is not stopped."""
    return outcome(measure(tmp_path_factory.mktemp("whole") / "x.json"))


def predictions(out: Path) -> Path:
    return out.with_suffix("") / "predictions.jsonl"


def failing(at: int, error: BaseException) -> Random:
    def fails(done: int) -> None:
        if done == at:
            raise error

    return Random(fails)


def test_a_file_cut_at_any_byte_is_completed(out: Path, whole: Any) -> None:
    measure(out)
    content = predictions(out).read_bytes()
    for cut in range(0, len(content) + 1, len(content) // 6):
        predictions(out).write_bytes(content[:cut])
        backend = Random()
        assert outcome(measure(out, backend)) == whole
        assert len(backend.asked) == ANSWERS - content[:cut].count(b"\n")
        assert len(answers_of(out)) == len(set(answers_of(out))) == ANSWERS


def test_broken_lines_are_set_aside_and_made_again_and_repeated_ones_dropped(
    out: Path, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(out)
    lines = predictions(out).read_bytes().splitlines(keepends=True)
    changes = ({"correct": "yes"}, {"extracted": 5}, {"tokens": -1}, {"scores": {"a": "b"}}, {"finish_reason": "?"})
    wrong = [json.dumps({**json.loads(lines[4]), **change}).encode() + b"\n" for change in changes]
    broken = [b'{"task": "sums"}\n', b"\0\xff\n", b"3\n", *wrong]
    predictions(out).write_bytes(b"".join([*lines[:3], *broken, lines[0], *lines[6:]]))
    backend = Random()
    assert outcome(measure(out, backend)) == whole
    assert len(backend.asked) == 3
    assert predictions(out).with_name("predictions-broken.jsonl").read_bytes() == b"".join(broken)
    assert len(answers_of(out)) == len(set(answers_of(out))) == ANSWERS


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (StoppedBySignal("x", together=False), 143)])
def test_a_signal_says_how_to_continue(out: Path, whole: Any, error: BaseException, status: int) -> None:
    backend = failing(20, error)
    with pytest.raises(StoppedBySignal) as stop:
        measure(out, backend)
    assert stop.value.code == status
    with pytest.raises(StoppedBySignal) as again:
        measure(out.with_name("y.json"), failing(1, error), overwrite=True)
    assert again.value.message.endswith("and the same command without --overwrite goes on from there")
    assert (
        f"; 20 of {ANSWERS} answers are in {predictions(out)}, and the same command goes on from there"
        in stop.value.message
    )
    assert len(answers_of(out)) == 20
    assert not out.exists()
    backend = Random()
    assert outcome(measure(out, backend)) == whole
    assert len(backend.asked) == ANSWERS - 20


def test_a_full_disk_is_one_message_and_loses_nothing(out: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.write, [3000]

    def limited(file: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(file, data[: left[0]])
        left[0] -= done
        return done

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"^--out: .*jsonl could not be .*No space left"),
    ):
        patch.setattr(json_lines.os, "write", limited)
        measure(out)
    stored = predictions(out).read_bytes().count(b"\n")
    assert stored > 10
    backend = Random()
    assert outcome(measure(out, backend)) == whole
    assert len(backend.asked) == ANSWERS - stored


def test_a_finished_evaluation_only_makes_its_numbers_again(out: Path) -> None:
    first = measure(out)
    stored = predictions(out).read_bytes()
    out.unlink()
    second = measure(out, failing(0, AssertionError()))
    assert outcome(second) == outcome(first)
    assert predictions(out).read_bytes() == stored
    third = measure(out)
    assert third["tokens_per_second"] == second["tokens_per_second"]


@pytest.mark.parametrize(
    ("tasks", "settings", "new"),
    [
        ({"sums": TASKS["sums"]}, SAMPLED, 7 * 4),
        (TASKS, replace(SAMPLED, n=1), 12 * 2),
        (TASKS, replace(SAMPLED, limit=2), 8 * 4),
        (TASKS, replace(SAMPLED, greedy=False), 12),
    ],
)
def test_more_questions_or_answers_keep_those_that_are_there(
    out: Path, whole: Any, tasks: Any, settings: Settings, new: int
) -> None:
    small = outcome(measure(out, tasks=tasks, settings=settings))
    backend = Random()
    assert outcome(measure(out, backend)) == whole
    assert len(backend.asked) == new
    assert outcome(measure(out, failing(0, AssertionError()), tasks, settings)) == small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SAMPLED, temperature=0.5)}, "with temperature of sums 1.0, this command has 0.5"),
        ({"settings": replace(SAMPLED, seed=1)}, "with seed of sums 0, this command has 1"),
        ({"settings": replace(SAMPLED, system="a")}, 'with system of sums null, this command has "a"'),
        ({"settings": replace(SAMPLED, max_new_tokens=9)}, "with max_new_tokens of sums null, this command has 9"),
        ({"weights": "v"}, 'with weights "w", this command has "v"'),
        ({"tasks": {"sums": Sums(words="{} and?")}}, "with another prompt or max_new_tokens for question 0 of sums"),
        ({"context": 100}, "with another prompt or max_new_tokens for question 0 of sums"),
    ],
)
def test_other_settings_are_refused_until_overwritten(out: Path, change: dict[str, Any], message: str) -> None:
    measure(out)
    before = {path: path.read_bytes() for path in out.with_suffix("").iterdir()}
    with pytest.raises(UserError) as caught:
        measure(out, **change)
    assert str(caught.value).startswith(f"--out: {out} was made {message}; --overwrite starts over")
    assert {path: path.read_bytes() for path in out.with_suffix("").iterdir()} == before
    backend = Random()
    measure(out, backend, **change, overwrite=True)
    assert backend.asked


@pytest.mark.parametrize("change", ["grader", "gold"])
def test_answers_are_graded_again_if_the_grader_or_the_gold_changes(
    out: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    measure(out)
    tasks = {**TASKS, "sums": Sums(shift=2)} if change == "gold" else TASKS
    if change == "grader":
        monkeypatch.setattr("lit_probsft.evaluation.evaluation.VERSION", 0)
        monkeypatch.setattr(
            Sums, "grade", lambda self, answer, question: replace(_grade(self, answer, question), correct=True)
        )
    again = outcome(measure(out, failing(0, AssertionError()), tasks))
    assert again == outcome(measure(out.with_name("y.json"), tasks=tasks))


_grade = Sums.grade


@pytest.mark.parametrize(
    ("graded", "message"),
    [
        (None, "expected a Grade from Sums.grade, got null"),
        (Grade(True, "1", "same", {"a": float("nan")}), "expected a Grade from Sums.grade, got Grade"),
        (KeyError("x"), "Sums.grade raised KeyError: 'x'"),
    ],
)
def test_a_grader_that_fails_is_one_message(
    out: Path, monkeypatch: pytest.MonkeyPatch, graded: Any, message: str
) -> None:
    def grade(self: Sums, answer: str, question: Any) -> Any:
        if isinstance(graded, Exception):
            raise graded
        return graded

    monkeypatch.setattr(Sums, "grade", grade)
    with pytest.raises(UserError, match=rf"^(sums|more): {re.escape(message)}.* \(question \d\)$"):
        measure(out)


def test_a_task_needs_no_source_if_it_loads_rows_itself(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "hub", {})
    assert measure(out)["tasks"]["sums"]["settings"]["source"] == {}


def test_every_answer_has_a_seed_of_its_own() -> None:
    names = [(seed, task, question) for seed in (0, 1) for task in ("a", "b") for question in ("a", "b" * 5000)]
    draws = [Settings(n=4, temperature=1.0, seed=seed).draws(task, question) for seed, task, question in names]
    seeds = {draw.seed for drawn in draws for draw in drawn}
    assert len(seeds) == len(names) * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_files_in_use_by_another_process_are_refused(out: Path) -> None:
    measure(out)
    lock = str(out.with_suffix("") / ".lock")
    code = f"import fcntl; f = open({lock!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="^--out: another process is writing the answers of"):
            Store(out)
        other.communicate(b"\n")
    with Store(out):
        pass


def test_a_slow_grader_does_not_stop_the_backend(out: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Last(Random):
        def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
            yield from super().answer(requests)
            answered.set()

    def slow(self: Sums, answer: str, question: Any) -> Any:
        assert answered.wait(20)
        assert threading.current_thread().daemon  # the end of the process does not wait for a grader that hangs
        return _grade(self, answer, question)

    monkeypatch.setattr(Sums, "grade", slow)
    assert outcome(measure(out, Last())) == whole


def test_the_prompt_is_that_of_training_and_a_long_one_counts_as_wrong(out: Path) -> None:
    tokenizer = ByteTokenizer().load(list)
    tasks = {"sums": Sums(count=3), "long": Sums(count=2, words="{}" + "x" * 100)}
    settings = Settings(system="Be brief.", max_new_tokens=50)
    evaluation = Evaluation(tasks, settings, tokenizer, 90)
    answer = {"role": "assistant", "content": "1"}
    for request in evaluation.requests:
        trained = tokenize_conversation(tokenizer, [*request.messages, answer])["input_ids"]
        assert trained[: len(request.prompt)] == list(request.prompt)
        assert b"Be brief." in bytes(token for token in request.prompt if token < 256)
        assert request.max_new_tokens == 90 - len(request.prompt) < 50
    assert len(evaluation.requests) == 3
    numbers = measure(out, None, tasks, settings, tokenizer=tokenizer, context=90)["tasks"]
    assert numbers["long"]["prompt_too_long"] == 2
    assert numbers["long"]["accuracy"]["mean"] == 0
    assert numbers["sums"]["prompt_too_long"] == 0


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: out.mkdir(parents=True), "is a folder"),
        (lambda out: (out.parent.mkdir(), out.with_suffix("").touch()), "is a file"),
        (lambda out: out.parent.touch(), "is a file"),
        (lambda out: (out.parent.mkdir(), out.touch()), "exists without its answers"),
        (lambda out: (out.with_suffix("").mkdir(parents=True), (out.with_suffix("") / "a").touch()), "has other files"),
    ],
)
def test_a_place_that_holds_something_else_is_refused(out: Path, prepare: Callable[[Path], Any], message: str) -> None:
    prepare(out)
    with pytest.raises(UserError, match=f"^--out: .*{message}"):
        Store(out)
