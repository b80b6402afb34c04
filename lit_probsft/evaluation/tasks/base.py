"""The interface of tasks."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partialmethod
from itertools import count
from typing import Any, ClassVar

from lit_probsft.data.rows.columns import missing_column, shown_value
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.files import local_paths, refuse_broken
from lit_probsft.data.rows.row_source import Rows
from lit_probsft.errors import UserError, check_range, errors_within, first_line, near_matches
from lit_probsft.evaluation.grading import Grade
from lit_probsft.evaluation.tasks.subset import chosen
from lit_probsft.parallel.stopping import StoppedBySignal

IDS = ("id", "unique_id", "question_id", "idx", "pubid", "key")
"""Columns that may hold the id of a question, in the order in which they are tried."""


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        id: names it within the task; the same in every evaluation.
        messages: the prompt, without the system text that `--system` adds.
        gold: the right answer, as JSON can hold it: a text, or a list of texts that are all right.
        reference: a text that a model which knows the answer would write. Its likelihood is measured.
        choices: texts of the choices by label, for a multiple-choice question.
        answers: what an answer with each choice says, if it is not the text. Their likelihoods are measured.
        group: the source of the question, where a task has several. Standard errors are clustered by it.
        tolerance: the largest difference from a gold number that is still right.
    """

    id: str
    messages: list[Message]
    gold: Any
    reference: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True)
class Task(ABC):
    """A benchmark. A subclass implements `question` and `grade`; one with more fields is a frozen dataclass too.

    `prompt = "..."` in a subclass without new fields changes the default of a field.

    Args:
        path: a hub id or local files instead of the task's own source, as in `Rows`.
        name: the configuration of a hub data set, instead of the task's own.
        split: of the source, instead of the task's own.
        revision: branch, tag or commit of a hub data set.
        id: the column that names a question. By default the first of `IDS` that the rows have if its values all
            differ, else the number of the row.
        group: the column with the group of a question, such as its source. Results list every group.
        groups: ask only the questions of these groups.
    """

    path: str | None = None
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    id: str | None = None
    group: str | None = None
    groups: list[str] | None = None

    hub: ClassVar[Mapping[str, str]] = {}
    """The task's own source: `path`, and if need be `name` and `split`, as in `Rows`."""
    files: ClassVar[Sequence[str]] = ()
    """Names of local files with the same rows, relative to `--data-dir`. The first one that exists is read."""
    max_new_tokens: ClassVar[int] = 2048
    """The most tokens of an answer, unless the user says otherwise."""

    def __init_subclass__(cls) -> None:
        # Without an annotation, a dataclass does not see a default.
        own = {*vars(cls)} - {*inspect.get_annotations(cls)}
        if defaults := {field.name: vars(cls)[field.name] for field in fields(cls) if field.name in own}:
            cls.__init__ = partialmethod(cls.__init__, **defaults)  # type: ignore[assignment]

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """Turn a row into a question. `id` and `group` may be left empty: `questions` fills them in.

        Raises:
            UserError: the row cannot be used. The message need not say which row it is.
        """

    @abstractmethod
    def grade(self, answer: str, question: Question) -> Grade:
        """Grade an answer to `question`. Never raises."""

    def source(self) -> dict[str, Any]:
        """The arguments of `Rows` for the rows; empty if the task has no source of its own, and none is given."""
        options = {"path": self.path, "name": self.name, "split": self.split, "revision": self.revision}
        given = {key: value for key, value in options.items() if value is not None}
        return given if self.path is not None and local_paths(self.path) is not None else {**self.hub, **given}

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The rows, in a fixed order.

        Raises:
            UserError: they cannot be read.
        """
        source = self.source()
        if not source:
            raise UserError("path", f"expected the rows of {type(self).__name__}: a file, or a data set on the hub")
        return refuse_broken(Rows(**source).load_with_broken())

    def questions(self, limit: int | None = None) -> list[Question]:
        """The questions in the order of their rows, each with its id and group.

        Args:
            limit: ask at most this many, see `chosen`. The ids do not depend on it.

        Raises:
            UserError: the rows cannot be read, one cannot be used, or two questions have the same id.
        """
        check_range("limit", limit, 1, math.inf)
        with self.own_code("load"):
            rows = self.load()
            count = len(rows)
        if not count:
            raise UserError("path", "expected at least one row, got none")
        groups = self._groups(rows)
        ids = self._ids(rows, groups)
        kept = [index for index, group in enumerate(groups) if not self.groups or group in self.groups]
        found = []
        for index in (kept[place] for place in chosen([groups[index] for index in kept], limit)):
            with errors_within("", f" (row {index}, counted from 0)"):
                question = self._asked(rows[index])
            found.append(replace(question, id=question.id or ids[index], group=question.group or groups[index]))
        repeated, times = Counter(question.id for question in found).most_common(1)[0]
        if times > 1:
            raise UserError("id", f"expected another id for each question, got {repeated!r} {times} times")
        return found

    def _asked(self, row: Mapping[str, Any]) -> Question:
        with self.own_code("question"):
            question = self.question(row)
            if not isinstance(question, Question) or not isinstance(question.id, str) or not question.messages:
                problem = f"expected a Question with a message, and a text as id, from {type(self).__name__}.question"
                raise UserError("", f"{problem}, got {shown_value(question)}")
            json.dumps([question.gold, question.reference, dict(question.choices)])
        return question

    @contextlib.contextmanager
    def own_code(self, method: str) -> Iterator[None]:
        """Raise whatever `method` raises, which may be a user's own code, as a UserError."""
        try:
            yield
        except (UserError, StoppedBySignal):
            raise
        except (Exception, SystemExit) as error:
            problem = f"{type(self).__name__}.{method} raised {type(error).__name__}: {first_line(error)}"
            raise UserError("", problem) from error

    def _groups(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The group of each row; None without a column for it."""
        found: list[str | None] = [None] * len(rows)
        if self.group is not None:  # otherwise no row is read: the puzzles are drawn when they are
            if self.group not in rows[0]:
                raise UserError("group", missing_column(self.group, list(rows[0])))
            found = [str(row[self.group]) for row in rows]
        known = [name for name in dict.fromkeys(found) if name is not None]
        for name in self.groups or ():
            if name not in known:
                listed = f"some of {', '.join(known)}" if known else "none without a column `group`"
                raise UserError("groups", f"expected {listed}, got {name!r}.{near_matches(name, known)}")
        return found

    def _ids(self, rows: Sequence[Mapping[str, Any]], groups: Sequence[str | None]) -> list[str]:
        """The id of each row: from its column, or its number within its group."""
        column = self.id or next((name for name in IDS if name in rows[0] and name != self.group), None)
        if self.id is not None and self.id not in rows[0]:
            raise UserError("id", missing_column(self.id, list(rows[0])))
        prefixes = ["" if group is None else f"{group}/" for group in groups]
        if column is not None:
            ids = [f"{prefix}{row.get(column)}" for prefix, row in zip(prefixes, rows, strict=True)]
            if self.id is not None or len({*ids}) == len(ids):
                return ids
        numbers: dict[str, count[int]] = defaultdict(count)
        return [f"{prefix}{next(numbers[prefix])}" for prefix in prefixes]
