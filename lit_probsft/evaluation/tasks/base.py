"""The interface of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.row_source import Rows
from lit_probsft.evaluation.grading.grade import Grade


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        id: names it within the task; the same in every evaluation.
        messages: the prompt, without the system text that `--system` adds.
        gold: the right answer, as JSON can hold it: a text, or a list of texts that are all right.
        reference: a text that a model which knows the answer would write. Its likelihood is measured.
        choices: texts of the choices by label, for a multiple-choice question.
        group: the source of the question, where a task has several. Standard errors are clustered by it.
    """

    id: str
    messages: list[Message]
    gold: Any
    reference: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True)
class Task(ABC):
    """A benchmark. Members are frozen dataclasses; a configuration names them by class path.

    Args:
        path: a hub id or local files instead of the task's own source, as in `Rows`.
        split: of the source, instead of the task's own.
    """

    path: str | None = None
    split: str | None = None

    hub: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `Rows` for the task's own source: path, name, split, revision."""
    files: ClassVar[Sequence[str]] = ()
    """Names of local files with the same rows, as they are looked for below `--data-dir`."""
    max_new_tokens: ClassVar[int] = 2048
    """The most tokens of an answer, unless the user says otherwise."""

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The rows, in a fixed order.

        Raises:
            UserError: they cannot be read.
        """
        source = {
            **self.hub,
            **({"path": self.path} if self.path else {}),
            **({"split": self.split} if self.split else {}),
        }
        return Rows(**source).load()

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """The question of a row; `id` may be empty, it is then the row's number."""

    @abstractmethod
    def grade(self, answer: str, question: Question) -> Grade:
        """Grade an answer to `question`. Never raises."""
