"""Tasks whose prompt is a template of columns."""

from __future__ import annotations

from abc import ABC
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.rows.columns import columns_of, fill_template, placeholders, with_nested
from lit_probsft.data.rows.conversation import Message
from lit_probsft.evaluation.tasks.base import Task
from lit_probsft.evaluation.tasks.fields import QUESTION, field_of


@dataclass(frozen=True)
class Prompted(Task, ABC):
    r"""A task with a prompt template.

    Args:
        prompt: a template of columns, as in `Rows`. `{question}` is the column of that name or, if there is none,
            `problem`, `prompt` or a similar one. Other braces, as in `\boxed{}`, stay.
        answer: the column with the right answer, by default `answer` or a similar name.
    """

    prompt: str = "{question}"
    answer: str | None = None

    def messages(self, row: Mapping[str, Any], **values: str) -> list[Message]:
        """The prompt of a row; `values` are further names that the template may use.

        Raises:
            UserError: the template names a column that does not exist or holds no text.
        """
        names = placeholders(self.prompt)
        if "question" in names:
            values["question"] = field_of(row, None, QUESTION, "prompt")
        columns = ChainMap(values, dict(with_nested(row, columns_of(names, row))))
        return [{"role": "user", "content": fill_template(self.prompt, columns, argument="prompt")}]
