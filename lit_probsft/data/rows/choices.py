"""Questions with choices, of which the answer is one label; a share of the labels may be made wrong."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.rows.conversation import (
    Message,
    check_template,
    fill_places,
    missing_column,
    shown_value,
    text_field,
    validate_conversation,
    with_nested,
)
from lit_probsft.data.rows.files import RowSequence, refuse_broken
from lit_probsft.data.rows.readers import Reader
from lit_probsft.data.rows.row_source import Rows
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import RowStream
from lit_probsft.errors import UserError


@dataclass(frozen=True)
class MultipleChoice(Source):
    """Questions from the hub or from local files, each with choices; the label of one of them is learnt.

    With `flipped` some rows teach the label of another choice: what a model makes of answers that are wrong. Whether a
    row is one of them, and which label it gets, depends on `seed` and on what stands in the row, not on where it
    stands: each row with this probability on its own, the others with equal probability. A row that is flipped at a
    share is flipped, and to the same label, at every larger one.

    Args:
        path: as in `Rows`.
        name: as in `Rows`.
        split: as in `Rows`.
        limit: as in `Rows`.
        question: the column with the question; this and the next three are OpenBookQA's where they are not given. A
            field of a nested column has a dotted name.
        choices: the column with the list of choices, two at least.
        labels: the column with the list of their labels, all different.
        answer: the column with the label of the right choice.
        prompt: a template of `{question}` and `{choices}`, the latter a line such as `A. a text` for each.
        flipped: the share of rows with a wrong label, 0 to 1.
        seed: of what is flipped.
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
        check_template(self.prompt, ["question", "choices"], "prompt")
        _ = self._rows  # `limit` is checked there

    @functools.cached_property
    def _rows(self) -> Rows:
        return Rows(self.path, name=self.name, split=self.split, limit=self.limit, revision=self.revision)

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The rows as they are stored; a missing file, a broken line or a missing column is refused here."""
        rows = refuse_broken(self.load_with_broken())
        if len(rows):
            self._fields(rows[0])
        return rows

    def load_with_broken(self) -> RowSequence:
        """The rows; a broken line leaves a `BrokenRow`."""
        return self._rows.load_with_broken()

    def reader(self, position: Any = None) -> Reader:
        """The rows one by one, as `Rows` reads them."""
        return self._rows.reader(position)

    def stream(self, position: Any = None) -> RowStream:
        """The rows without an end; a pass has at most `limit`."""
        return self._rows.stream(position)

    def commits(self) -> Mapping[str, str]:
        """Of a hub data set, as the hub tells it."""
        return self._rows.commits()

    def identity(self) -> dict[str, Any]:
        """Every field, and names and sizes of local files."""
        return {**self.describe(), "path": self._rows.identity()["path"]}

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The question with its choices, and the label that is taught."""
        question, choices, labels, answer = self._fields(row)
        lines = "\n".join(f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True))
        prompt = fill_places(self.prompt, {"question": question, "choices": lines}, argument="prompt")
        taught = self._taught([question, choices, labels, answer])
        return validate_conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": taught}])

    def is_flipped(self, row: Mapping[str, Any]) -> bool:
        """Whether this row teaches a wrong label.

        Raises:
            UserError: as `conversation`.
        """
        fields = self._fields(row)
        return self._taught(list(fields)) != fields[3]

    def _taught(self, fields: list[Any]) -> str:
        _, _, labels, answer = fields
        digest = hashlib.sha256(json.dumps([self.seed, *fields]).encode("utf-8", "surrogatepass")).digest()
        drawn, which = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
        if drawn >= self.flipped * 2**64:
            right: str = answer
            return right
        others = [label for label in labels if label != answer]
        wrong: str = others[which % len(others)]
        return wrong

    def _fields(self, row: Mapping[str, Any]) -> tuple[str, list[str], list[str], str]:
        """Question, choices, labels and the right label."""
        row = with_nested(row)
        for argument in ("question", "choices", "labels", "answer"):
            if getattr(self, argument) not in row:
                raise UserError(argument, f"{missing_column(getattr(self, argument), list(row))}")
        question = text_field(row[self.question], f"question: column {self.question!r}")
        choices, labels = (self._texts(row, argument) for argument in ("choices", "labels"))
        if not len(choices) == len(labels) == len(set(labels)) or len(labels) < 2:
            raise UserError(
                "labels",
                f"expected a different one for each of at least two choices, got {shown_value(labels)} for "
                f"{len(choices)} choices",
            )
        answer = row[self.answer]
        if answer not in labels:
            raise UserError("answer", f"column {self.answer!r}: expected one of {labels}, got {shown_value(answer)}")
        return question, choices, labels, answer

    def _texts(self, row: Mapping[str, Any], argument: str) -> list[str]:
        column = getattr(self, argument)
        value = row[column]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UserError(argument, f"column {column!r}: expected a list of texts, got {shown_value(value)}")
        return [text_field(text, f"{argument}: column {column!r}") for text in value]
