"""Texts from the columns of a row: nested fields, templates of columns, and what errors say about them."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.errors import UserError, near_matches

# A doubled brace is a literal one; `{name}` is a column; any other brace (LaTeX has many) stays as it is.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][\w .\-]*")


def with_nested(row: Mapping[str, Any], used: Iterable[str] | None = None) -> Mapping[str, Any]:
    """Return `row` with the fields of nested mappings as columns of dotted names: `extra_info.question`.

    Args:
        row: columns and their values.
        used: the columns to look into, by default all. No other value is read.
    """
    fields: dict[str, Any] = {}
    for column in row if used is None else used:
        found = [(column, row[column])]
        for name, value in found:  # it grows: JSON may be nested more deeply than Python can call itself
            if isinstance(value, Mapping):
                inner = {f"{name}.{key}": field for key, field in value.items()}
                fields |= inner
                found += inner.items()
    return ChainMap(fields, cast(dict[str, Any], row)) if fields else row


def placeholders(template: str) -> list[str]:
    """The names between single braces, which may or may not be columns."""
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1] is not None]


def columns_of(names: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Return those of a row's `columns` that are among `names`, or have a field among them: `a` for `a.b`."""
    names = list(names)
    return [column for column in columns if any(name == column or name.startswith(f"{column}.") for name in names)]


def sole_placeholder(template: str) -> str | None:
    """The name in a template that is `{name}` and nothing else, otherwise None."""
    match = _PLACEHOLDER.fullmatch(template)
    return match[1] if match is not None and match[1] is not None and _NAME.fullmatch(match[1]) else None


def fill_template(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    """Return the text of column `template`, or `template` with each `{column}` replaced by the row's text.

    Raises:
        UserError: a column is missing, empty or not a string.
    """
    if template in row:
        return text_field(row[template], f"{argument}: column {template!r}")
    check_placeholders(template, list(row), argument)
    return fill_placeholders(template, row, argument=argument)


def check_placeholders(template: str, columns: Sequence[str], argument: str) -> None:
    """Refuse a column or template that names a column not among `columns`.

    Raises:
        UserError: names the missing column.
    """
    if template in columns:
        return
    found = placeholders(template)
    if not any(name in columns for name in found):
        named = [name for name in found if _NAME.fullmatch(name)]
        raise UserError(argument, missing_column(named[0] if named else template, columns))
    for name in found:
        if name not in columns and _NAME.fullmatch(name):
            raise UserError(argument, f"{missing_column(name, columns)} (a literal brace is written twice: '{{{{')")


def fill_placeholders(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    """Return `template` with each `{column}` of the row replaced by its text."""

    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in row:
            return match[0]
        return text_field(row[match[1]], f"{argument}: column {match[1]!r}")

    return _PLACEHOLDER.sub(fill, template)


def text_field(value: Any, where: str, *, empty: bool = False) -> str:
    """Return `value` if it is text that UTF-8 can encode, or the name of a class label.

    Args:
        value: of a column or a turn.
        where: names it in errors.
        empty: whether it may be empty.

    Raises:
        UserError: it is not a string, is empty, or is not valid Unicode.
    """
    if not isinstance(value, str):
        value = name_of_label(value)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(where, f"expected non-empty text, got {shown_value(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            where,
            f"expected Unicode text, got half of a surrogate pair (U+{ord(value[error.start]):04X}) at "
            f"character {error.start}",
        ) from error
    return value


def missing_column(name: str, columns: Sequence[str]) -> str:
    """The problem of a column that does not exist, with near matches."""
    return f"no column {name!r} among {listed(columns)}.{near_matches(name, columns)}"


def listed(columns: Iterable[str]) -> str:
    """The first twenty names, for an error."""
    names = [repr(column) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "(none)"


def shown_value(value: Any) -> str:
    """A value for an error, shortened to 80 characters."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
