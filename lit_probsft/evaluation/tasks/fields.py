"""Reads values of a row whose column has different names in different data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import columns_of, missing_column, text_field, with_nested
from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.errors import UserError
from lit_probsft.evaluation.grading.extraction import last_box

QUESTION = ("question", "question_stem", "problem", "prompt", "instruction", "input")
ANSWER = ("answer", "final_answer", "gold", "target", "ground_truth", "response", "output")
SOLUTION = ("solution", "rationale")

_MISSING = object()


def field_of(
    row: Mapping[str, Any], named: str | None, names: Sequence[str], argument: str, default: Any = _MISSING
) -> Any:
    """The value of the column `named`, or of the first one of `names` that is not null, in upper or lower case.

    Dotted names are nested fields.

    Raises:
        UserError: there is no such column, and no default.
    """
    wanted = names if named is None else [named]
    row = with_nested(row, columns_of(wanted, row))
    by_lower = {column.lower(): column for column in reversed([*row])}
    found = [name if name in row else by_lower[name.lower()] for name in wanted if name.lower() in by_lower]
    value = next((row[column] for column in found if row[column] is not None), default)
    if value is _MISSING:
        raise UserError(argument, f"column {found[0]!r} is null" if found else missing_column(wanted[0], list(row)))
    return value


def as_text(value: Any, argument: str) -> str:
    """A text, a class label or a number as text; 27.0 is `27`.

    Raises:
        UserError: it is something else, or empty.
    """
    value = name_of_label(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return text_field(str(value) if number else value, argument).strip()


def as_texts(value: Any, argument: str) -> list[str]:
    """The texts of a list, or of a single value; at least one.

    Raises:
        UserError: as `as_text`.
    """
    values = value if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else [value]
    return [as_text(one, argument) for one in values]


def marked_answer(text: str) -> str:
    r"""The answer in a solution: the text after `####`, or in its last complete `\boxed{}`; else the whole text."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    return last_box(text) or text
