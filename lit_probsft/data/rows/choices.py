"""Multiple-choice questions, supervised with one label; a share of the labels may be flipped to wrong ones."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.columns import (
    check_placeholders,
    columns_of,
    fill_placeholders,
    missing_column,
    shown_value,
    text_field,
    with_nested,
)
from lit_probsft.data.rows.conversation import Message, validate_conversation
from lit_probsft.data.rows.files import refuse_broken
from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.data.rows.readers import Reader, RowSequence
from lit_probsft.data.rows.row_source import Rows
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import RowStream
from lit_probsft.errors import UserError


@dataclass(frozen=True)
class MultipleChoice(Source):
    """Multiple-choice questions from the hub or from local files; the response is the label of one choice.

    `flipped` gives a share of the rows the label of a wrong choice, to see what a model makes of wrong answers. Each
    row is flipped with this probability, independently, to one of the wrong labels with equal probability. Both draws
    depend on `seed` and the content of the row, not on its position. A row that is flipped at one share is flipped, to
    the same label, at every larger share.

    Args:
        path: as in `Rows`.
        name: as in `Rows`.
        split: as in `Rows`.
        limit: as in `Rows`.
        question: the column with the question. This and the next three default to OpenBookQA's columns; a field of a
            nested column has a dotted name.
        choices: the column with the list of choices, at least two.
        labels: the column with the list of their labels, all different.
        answer: the column with the label of the right choice.
        prompt: a template of `{question}` and `{choices}`; the latter has one line per choice, such as `A. a text`.
        flipped: share of rows with a wrong label, 0 to 1.
        seed: seed of the flips. It says which labels are wrong, so it does not follow the run's seed.
        revision: as in `Rows`.
    """

    path: str | list[str]
    name: str | None = None
    split: str | None = None
    limit: int | None = None
    question: str = "question_stem"
    choices: str = "choices.text"
    labels: str = "choices.label"
    answer: str = "answerKey"
    prompt: str = "{question}\n{choices}"
    flipped: float = 0.0
    seed: int = 0
    revision: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flipped <= 1:
            raise UserError("flipped", f"expected a share from 0 to 1, got {self.flipped}")
        check_placeholders(self.prompt, ["question", "choices"], "prompt")
        _ = self._rows  # checks `limit`

    @functools.cached_property
    def _rows(self) -> Rows:
        return Rows(self.path, name=self.name, split=self.split, limit=self.limit, revision=self.revision)

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        rows = refuse_broken(self.load_with_broken())
        if len(rows):
            self._fields(rows[0])
        return rows

    @override
    def load_with_broken(self) -> RowSequence:
        return self._rows.load_with_broken()

    @override
    def reader(self, position: Any = None) -> Reader:
        return self._rows.reader(position)

    @override
    def stream(self, position: Any = None) -> RowStream:
        return self._rows.stream(position)

    @override
    def commits(self) -> Mapping[str, str]:
        return self._rows.commits()

    @override
    def identity(self) -> dict[str, Any]:
        return {**self.describe(), "path": self._rows.identity()["path"]}

    @override
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        question, choices, labels, answer = self._fields(row)
        lines = "\n".join(f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True))
        prompt = fill_placeholders(self.prompt, {"question": question, "choices": lines}, argument="prompt")
        response = self._response([question, choices, labels, answer])
        return validate_conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])

    @override
    def unused(self, row: Mapping[str, Any]) -> list[str]:
        used = self._used(row)
        return [column for column in row if column not in used]

    def _used(self, row: Mapping[str, Any]) -> list[str]:
        return columns_of((self.question, self.choices, self.labels, self.answer), row)

    def is_flipped(self, row: Mapping[str, Any]) -> bool:
        """Whether this row is supervised with a wrong label.

        Raises:
            UserError: as `conversation`.
        """
        fields = self._fields(row)
        return self._response(list(fields)) != fields[3]

    def _response(self, fields: list[Any]) -> str:
        """The answer, or a wrong label when the row is flipped."""
        _, _, labels, answer = fields
        digest = hashlib.sha256(json.dumps([self.seed, *fields]).encode("utf-8", "surrogatepass")).digest()
        draw, choice = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
        if draw >= self.flipped * 2**64:
            right: str = answer
            return right
        others = [label for label in labels if label != answer]
        wrong: str = others[choice % len(others)]
        return wrong

    def _fields(self, row: Mapping[str, Any]) -> tuple[str, list[str], list[str], str]:
        """The question, its choices, their labels and the right label."""
        row = with_nested(row, self._used(row))
        for argument in ("question", "choices", "labels", "answer"):
            if getattr(self, argument) not in row:
                raise UserError(argument, missing_column(getattr(self, argument), list(row)))
        question = text_field(row[self.question], f"question: column {self.question!r}")
        choices, labels = (self._texts(row, argument) for argument in ("choices", "labels"))
        if not len(choices) == len(labels) == len(set(labels)) or len(labels) < 2:
            raise UserError(
                "labels",
                f"expected at least two choices with a different label each, got {len(choices)} choices with labels "
                f"{shown_value(labels)}",
            )
        answer = name_of_label(row[self.answer])
        if answer not in labels:
            raise UserError("answer", f"column {self.answer!r}: expected one of {labels}, got {shown_value(answer)}")
        return question, choices, labels, answer

    def _texts(self, row: Mapping[str, Any], argument: str) -> list[str]:
        column = getattr(self, argument)
        value = row[column]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UserError(argument, f"column {column!r}: expected a list of texts, got {shown_value(value)}")
        return [text_field(text, f"{argument}: column {column!r}") for text in value]
