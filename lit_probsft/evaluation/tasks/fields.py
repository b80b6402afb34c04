"""Values of a row whose column has one name here and another there, as texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import columns_of, missing_column, shown_value, text_field, with_nested
from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.errors import UserError

QUESTION = ("question", "question_stem", "problem", "prompt", "instruction", "input")
ANSWER = ("answer", "final_answer", "gold", "target", "ground_truth", "response", "output")
SOLUTION = ("solution", "solutions", "rationale")


def find_column(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first column of `names` that the row has a value for. Upper and lower case are the same."""
    by_name = {column.lower(): column for column in reversed([*row])}
    found = (name if name in row else by_name.get(name.lower()) for name in names)
    return next((name for name in found if name is not None and row[name] is not None), None)


def field_of(row: Mapping[str, Any], named: str | None, names: Sequence[str], argument: str) -> Any:
    """The value of the column `named`, by default of the first column of `names`. Dotted names are nested fields.

    Raises:
        UserError: there is no such column, or it is null.
    """
    wanted = names if named is None else [named]
    row = with_nested(row, columns_of(wanted, row))
    column = find_column(row, wanted)
    if column is None:
        raise UserError(argument, missing_column(wanted[0], list(row)))
    return row[column]


def as_text(value: Any, argument: str) -> str:
    """A text, a class label or a number as text. 27.0 is `27`.

    Raises:
        UserError: it is something else, or empty.
    """
    value = name_of_label(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return text_field(str(value) if number else value, argument).strip()


def as_texts(value: Any, argument: str) -> list[str]:
    """The texts of a list that is not empty, or of a single value.

    Raises:
        UserError: as `as_text`.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if listed and not value:
        raise UserError(argument, f"expected a text or a list of texts, got {shown_value(value)}")
    return [as_text(one, argument) for one in (value if listed else [value])]


def marked_answer(text: str) -> str:
    r"""The answer in a solution: the text after `####`, or in its last complete `\boxed{}`; else the whole text."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    box = last_box(text)
    return text if box is None else box


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{}`; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for match in re.finditer(r"\\.|[{}]", text[start:], re.S):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if not depth:
                return text[start : start + match.start()].strip()
    return None
