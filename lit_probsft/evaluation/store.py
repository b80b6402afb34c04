"""The files of an evaluation: they are locked, checked against the command, and continued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.errors import UserError
from lit_probsft.evaluation.evaluation import Row, is_row, key_of
from lit_probsft.evaluation.likelihood import is_likelihood
from lit_probsft.storage.atomic import (
    atomic_write,
    partial_of,
    read_json,
    remove,
    report_write_errors,
    sync_file,
    tidy,
)
from lit_probsft.storage.folder_lock import NAME as LOCK
from lit_probsft.storage.folder_lock import lock_folder, unlock_folder
from lit_probsft.storage.json_lines import JsonLines

_FORMAT = 1
_OUT = "--out"
_QUESTION = ("task", "question")
_question_of = itemgetter(*_QUESTION)
_PROMPT = ("prompt_sha256", "max_new_tokens")


class Store:
    """The files of an evaluation. Nothing is written before `open`.

    Args:
        out: the results file, `X.json`; the others are in the folder `X`.
        overwrite: start over.

    Raises:
        UserError: `out` cannot be a results file, or is in use by something else or by another process.

    Attributes:
        answers: the graded answers, by task, question and sample.
        likelihoods: by task and question.
        started: when the first answers were asked for.
    """

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        self.out, self.folder, self.overwrite = out, out.with_suffix(""), overwrite
        self.answers = JsonLines(self.folder / "predictions.jsonl", _OUT, (*_QUESTION, "sample"), is_row)
        self.likelihoods = JsonLines(self.folder / "likelihood.jsonl", _OUT, _QUESTION, is_likelihood)
        self._questions = JsonLines(self.folder / "questions.jsonl", _OUT, _QUESTION, _is_question)
        self._settings = self.folder / "settings.json"
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._check_path()
        if (self.folder / LOCK).exists():
            self._lock()

    def _check_path(self) -> None:
        if self.out.suffix != ".json":
            raise UserError(_OUT, f"expected a file that ends in .json, got {str(self.out)!r}")
        for path, is_wrong, kind in ((self.out, Path.is_dir, "a folder"), (self.folder, Path.is_file, "a file")):
            if is_wrong(path):
                raise UserError(_OUT, f"expected a results file and a folder, {str(path)!r} is {kind}")
        parent = next(path for path in self.out.absolute().parents if path.exists())
        if not parent.is_dir():
            raise UserError(_OUT, f"expected a file in a folder, {str(parent)!r} is a file")
        if self._settings.exists():
            return
        ours = {LOCK, partial_of(self._settings).name}
        if self.folder.is_dir() and any(path.name not in ours for path in self.folder.iterdir()):
            raise UserError(_OUT, f"the folder {self.folder} has other files than those of an evaluation")
        if self.out.exists() and not self.overwrite:
            raise UserError(_OUT, f"{self.out} exists without its answers; --overwrite replaces it")

    def _lock(self) -> None:
        with report_write_errors(_OUT, self.folder):
            lock_folder(self.folder, _OUT, f"another process is writing the answers of {self.out}")

    def open(
        self,
        model: Mapping[str, Any],
        settings: Mapping[str, Any],
        questions: Sequence[dict[str, Any]],
        grade_again: Callable[[Row], Row],
    ) -> None:
        """Lock the files, check that stored answers belong to this evaluation, and read them.

        Args:
            model: name and fingerprint, for the reader.
            settings: what all answers depend on, by name. Names that the files have too must have the same value.
            questions: the lines of questions.jsonl.
            grade_again: gives a stored answer a new grade, because its grader has changed, or the right answer.

        Raises:
            UserError: the answers were made with other settings or prompts, or the files cannot be read or written.
        """
        with report_write_errors(_OUT, self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            tidy(self.folder)
            if self.overwrite:
                files = (self.answers, self.likelihoods, self._questions)
                for path in (self.out, *(file.path for file in files), self.answers.aside, self._settings):
                    remove(path)
        known = read_json(self._settings) or {"settings": {}}
        if not isinstance(before := known.get("settings"), dict):
            raise UserError(str(self._settings), "expected the settings of the answers; --overwrite starts over")
        settings, questions = json.loads(json.dumps([settings, questions]))  # as they are read again
        for name, value in settings.items():
            if name in before and before[name] != value:
                self._refuse(f"with {name} {_shown(before[name])}, this command has {_shown(value)}")
        self._questions.read()
        stale = set()
        for line in questions:
            old = self._questions.objects.get(_question_of(line))
            if old and any(old.get(name) != line[name] for name in _PROMPT):
                self._refuse(f"with another prompt or max_new_tokens for question {line['question']} of {line['task']}")
            if old != line:
                stale.add(_question_of(line))
        self._read_answers(stale, grade_again)
        self.likelihoods.read()
        if stale & self.likelihoods.objects.keys():
            self.likelihoods.replace(row for name, row in self.likelihoods.objects.items() if name not in stale)
        self.started = known.get("started") or self.started
        content = {"format": _FORMAT, "model": model, "started": self.started, "settings": {**before, **settings}}
        with report_write_errors(_OUT, self._settings), atomic_write(self._settings) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
            sync_file(partial)
        new = {_question_of(line): line for line in questions}
        self._questions.replace({**self._questions.objects, **new}.values())

    def _refuse(self, difference: str) -> None:
        raise UserError(
            _OUT, f"{self.out} was made {difference}; --overwrite starts over, another --out keeps both results"
        )

    def _read_answers(self, stale: set[tuple[str, str]], grade_again: Callable[[Row], Row]) -> None:
        self.answers.read()
        if broken := self.answers.broken:
            rank_zero_info(f"{broken} broken lines of {self.answers.path} are in {self.answers.aside.name} now")
        again = [row for row in self.answers.objects.values() if _question_of(row) in stale]
        if again:
            rank_zero_info(f"{len(again)} answers are graded again: the grader or the right answers have changed")
            new = {key_of(row): grade_again(row) for row in again}
            self.answers.replace({**self.answers.objects, **new}.values())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until everything is on the disk, and unlock the files."""
        try:
            self.answers.close()
            self.likelihoods.close()
        finally:
            unlock_folder(self.folder)


def _is_question(content: Mapping[str, Any]) -> bool:
    return all(isinstance(content[name], str) for name in _QUESTION)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
