"""What precedes the first turn of a row: a system text and earlier turns, each in a column of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import fill_placeholders, shown_value, sole_placeholder, text_field
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.tool_calls import from_json
from lit_probsft.errors import UserError


def with_opening(turns: list[Message], row: Mapping[str, Any], system: str | None, *, history: bool) -> list[Message]:
    """Return the turns after the row's system text and history.

    Args:
        turns: at least one. A system turn among them has precedence over a system text.
        row: its columns `system` and `history` may be missing or empty.
        system: a text, or template of columns, instead of the column `system`. An empty one means no system text.
        history: whether to read the column `history`.

    Raises:
        UserError: a column is of the wrong type.
    """
    own = 1 if turns[0]["role"] == "system" else 0
    earlier = _earlier_turns(row.get("history")) if history else []
    text = None if own else _system_text(row, system)
    opening = [] if text is None else [{"role": "system", "content": text}]
    return [*opening, *turns[:own], *earlier, *turns[own:]]


def _system_text(row: Mapping[str, Any], template: str | None) -> str | None:
    column = "system" if template is None else sole_placeholder(template)
    if column is not None:
        return None if _is_blank(row.get(column)) else text_field(row[column], f"system: column {column!r}")
    # A bare column name is not looked up in a system text: "helpful" must not silently mean a column.
    return fill_placeholders(template or "", row, argument="system") if not _is_blank(template) else None


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _earlier_turns(value: Any) -> list[Message]:
    """The turns of a `history`: a list of pairs of a question and its answer, or the JSON text of one."""
    expected = "a list of [user, assistant] pairs, or its JSON text"
    if _is_blank(value):
        return []
    pairs = from_json(value, "history", expected) if isinstance(value, str) else value
    if pairs is None:
        return []
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise UserError("history", f"expected {expected}, got {shown_value(value)}")
    turns = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"history[{number}]", f"expected a pair [user, assistant], got {shown_value(pair)}")
        for place, role in enumerate(("user", "assistant")):
            turns.append({"role": role, "content": text_field(pair[place], f"history[{number}][{place}]")})
    return turns
