"""From a row of data to a conversation: `[{"role": ..., "content": ...}, ...]` with the answer to learn as its last
turn.

Nothing here reads files or tokenizes, so that evaluation asks its questions in exactly the words of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_probsft.errors import UserError, near_matches

Message = dict[str, str]
"""One turn: `role` is system, user or assistant; `content` is its text."""

ROLES = ("system", "user", "assistant")

# A doubled brace is a literal one; `{name}` is a column; any other brace (LaTeX has many) stays as it is.
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][\w .\-]*")


def conversation_from_columns(
    row: Mapping[str, Any],
    *,
    prompt: str | None = None,
    response: str | None = None,
    messages: str | None = None,
    system: str | None = None,
) -> list[Message]:
    """The conversation in `row`.

    Args:
        row: column name -> value.
        prompt, response: a column's name, or a template such as `{question}\\nThink step by step.`; a literal brace is
            doubled, and `{}` is left alone. A field of a nested column has a dotted name. Given together.
        messages: the name of a column that holds the turns themselves. Excludes `prompt` and `response`.
        system: a text (or template) that opens every conversation that has no system turn of its own.

        Where none of the first three is given, the column `messages`, else `prompt` and `response`, is taken.

    Raises:
        UserError: a column is missing, empty or no string, or the turns are out of order. The message starts with the
            argument that is at fault.
    """
    row = with_nested(row)
    prompt, response, messages = resolve_columns(list(row), prompt=prompt, response=response, messages=messages)
    if messages is not None:
        turns = validate_conversation(row[messages], argument="messages")
    else:
        assert prompt is not None
        assert response is not None
        turns = [
            {"role": "user", "content": fill_template(prompt, row, argument="prompt")},
            {"role": "assistant", "content": fill_template(response, row, argument="response")},
        ]
    if system is not None and turns[0]["role"] != "system":
        # A system text is never looked up as a bare column name: "helpful" should not silently mean a column.
        turns.insert(0, {"role": "system", "content": _fill_places(system, row, argument="system")})
    return turns


def with_nested(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row` with the fields of nested mappings beside its columns, under dotted names: `extra_info.question`."""
    nested = {key: with_nested(value) for key, value in row.items() if isinstance(value, Mapping)}
    if not nested:
        return row
    return {**row, **{f"{key}.{inner}": value for key, fields in nested.items() for inner, value in fields.items()}}


def resolve_columns(
    columns: Sequence[str], *, prompt: str | None = None, response: str | None = None, messages: str | None = None
) -> tuple[str | None, str | None, str | None]:
    """`(prompt, response, messages)` with the defaults filled in from the columns that are there.

    Raises:
        UserError: the three contradict each other, or name columns that are not among `columns`.
    """
    if messages is not None:
        if prompt is not None or response is not None:
            raise UserError("messages: expected either `messages` or `prompt` with `response`, got both")
        if messages not in columns:
            raise UserError(f"messages: {_missing(messages, columns)}")
        return None, None, messages
    if prompt is None and response is None:
        if "messages" in columns:
            return None, None, "messages"
        if "prompt" in columns or "response" in columns:
            for name in ("prompt", "response"):
                if name not in columns:
                    raise UserError(f"{name}: {_missing(name, columns)} Name the one to use.")
            return "prompt", "response", None
        raise UserError(
            "prompt: expected a column `messages`, or columns `prompt` and `response`, or the columns to use named by "
            f"`prompt` and `response`; the columns are {_listed(columns)}"
        )
    for argument, value in (("prompt", prompt), ("response", response)):
        if value is None:
            other = "response" if argument == "prompt" else "prompt"
            raise UserError(f"{argument}: expected a column or a template, as `{other}` is given; got nothing")
        _check_template(value, columns, argument)
    return prompt, response, None


def fill_template(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    """The text of column `template`, or `template` with each `{column}` replaced by the row's text.

    Raises:
        UserError: a column that is missing, empty or not a string.
    """
    if template in row:
        return _text(row[template], f"{argument}: column {template!r}")
    _check_template(template, list(row), argument)
    return _fill_places(template, row, argument=argument)


def validate_conversation(value: Any, *, argument: str = "messages", answered: bool = True) -> list[Message]:
    """A copy of `value` as plain messages, when its turns are in order: system?, then user and assistant by turns.

    Args:
        value: what should be a list of mappings with `role` and `content`.
        argument: how the error names it.
        answered: the last turn must be the assistant's (a training row); otherwise it may be the user's (a prompt).

    Raises:
        UserError: anything else, naming the turn.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{argument}: expected a non-empty list of {{role, content}}, got {_shown(value)}")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        where = f"{argument}[{index}]"
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            raise UserError(f"{where}: expected a mapping with role and content, got {_shown(turn)}")
        role = turn["role"]
        if role not in ROLES:
            hint = near_matches(role, ROLES) if isinstance(role, str) else ""
            raise UserError(f"{where}: expected a role among {', '.join(ROLES)}, got {_shown(role)}.{hint}")
        previous = messages[-1]["role"] if messages else None
        allowed = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}[
            previous
        ]
        if role not in allowed:
            after = f"after a turn of {previous}" if previous else "as the first turn"
            raise UserError(f"{where}: roles out of order: expected {' or '.join(allowed)} {after}, got {role}")
        messages.append({"role": role, "content": _text(turn["content"], where)})
    last = messages[-1]["role"]
    if answered and last != "assistant":
        raise UserError(
            f"{argument}: expected the last turn to be the assistant's, which is what is learnt; got {last}"
        )
    if not answered and last == "system":
        raise UserError(f"{argument}: expected a turn of the user, got a system turn only")
    return messages


def _check_template(template: str, columns: Sequence[str], argument: str) -> None:
    if template in columns:
        return
    places = [match for match in _PLACE.finditer(template) if match[1] is not None]
    if not any(match[1] in columns for match in places):
        named = [match[1] for match in places if _NAME.fullmatch(match[1])]
        raise UserError(f"{argument}: {_missing(named[0] if named else template, columns)}")
    for match in places:
        if match[1] not in columns and _NAME.fullmatch(match[1]):
            raise UserError(f"{argument}: {_missing(match[1], columns)} (a literal brace is written twice: '{{{{')")


def _fill_places(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in row:
            return match[0]
        return _text(row[match[1]], f"{argument}: column {match[1]!r}")

    return _PLACE.sub(fill, template)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected a text that is not empty, got {_shown(value)}")
    return value


def _missing(name: str, columns: Sequence[str]) -> str:
    return f"no column {name!r} among {_listed(columns)}.{near_matches(name, columns)}"


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(repr(column) for column in columns) or "(none)"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
