"""A conversation: `[{"role": ..., "content": ...}, ...]`, checked turn by turn, and the templates that make its texts
of columns.

Nothing here reads files or tokenizes, so that evaluation asks its questions in exactly the words of training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_probsft.errors import UserError, near_matches

Message = dict[str, Any]
"""One turn: `role` is system, user, assistant or tool; `content` is its text. An assistant's turn may have `tool_calls`
(and then an empty content), `reasoning_content`, and `train: False` when it is not to be learnt; a tool's turn may have
`tool_call_id` and `name`."""

ROLES = ("system", "user", "assistant", "tool")

# What other vocabularies call a role: OpenAI's newer name for the system, and ShareGPT's names.
_ALSO_CALLED = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}

# A doubled brace is a literal one; `{name}` is a column; any other brace (LaTeX has many) stays as it is.
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][\w .\-]*")


def with_nested(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row` with the fields of nested mappings beside its columns, under dotted names: `extra_info.question`."""
    nested = {key: with_nested(value) for key, value in row.items() if isinstance(value, Mapping)}
    if not nested:
        return row
    return {**row, **{f"{key}.{inner}": value for key, fields in nested.items() for inner, value in fields.items()}}


def fill_template(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    """The text of column `template`, or `template` with each `{column}` replaced by the row's text.

    Raises:
        UserError: a column that is missing, empty or not a string.
    """
    if template in row:
        return text_field(row[template], f"{argument}: column {template!r}")
    check_template(template, list(row), argument)
    return fill_places(template, row, argument=argument)


def validate_conversation(value: Any, *, argument: str = "messages", require_answer: bool = True) -> list[Message]:
    """A copy of `value` as plain messages, when its turns are in order: system?, then user and assistant by turns; an
    assistant that calls tools is followed by what they gave, and then speaks again.

    Args:
        value: what should be a list of mappings with `role` and `content`, as OpenAI writes them, or with `from` and
            `value`, as ShareGPT does.
        argument: how the error names it.
        require_answer: the last turn must be the assistant's, as in training. Otherwise it may be the user's or a
            tool's (a prompt).

    Raises:
        UserError: anything else, naming the turn.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(argument, f"expected a non-empty list of {{role, content}}, got {shown_value(value)}")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        message = _message(turn, f"{argument}[{index}]")
        _check_order(message, messages[-1] if messages else None, f"{argument}[{index}]")
        messages.append(message)
    last = messages[-1]["role"]
    if require_answer and last != "assistant":
        raise UserError(argument, f"expected the last turn to be the assistant's, which is what is learnt; got {last}")
    if not require_answer and last == "system":
        raise UserError(argument, "expected a turn of the user, got a system turn only")
    if require_answer and not any(is_learnt(message) for message in messages):
        raise UserError(argument, "expected a turn of the assistant to learn, got `train: false` for all of them")
    return messages


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Whether this is a turn of the assistant that its author has not excluded."""
    return message["role"] == "assistant" and message.get("train", True) is not False


def validate_tools(value: Any, *, argument: str = "tools") -> list[dict[str, Any]] | None:
    """The tools that a conversation may call, as its template gets them; None where there are none.

    Args:
        value: a list of JSON schemas, or the JSON text of one.
        argument: how the error names it.

    Raises:
        UserError: it is anything else.
    """
    if isinstance(value, str) and value.strip():
        value = _from_json(value, argument, "a list of tools, or its JSON text")
    if value is None or value == "" or value == []:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(tool, Mapping) and tool for tool in value)
    ):
        raise UserError(argument, f"expected a list of tools, each a mapping (a JSON schema), got {shown_value(value)}")
    return [dict(tool) for tool in value]


def text_field(value: Any, where: str, *, empty: bool = False) -> str:
    """`value`, when it is a text that can be written down.

    Args:
        value: of a column or a turn.
        where: how the error names it.
        empty: whether it may be empty.

    Raises:
        UserError: it is no text, or empty, or no Unicode.
    """
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(where, f"expected a text that is not empty, got {shown_value(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            where,
            f"expected Unicode text, got half of a surrogate pair (U+{ord(value[error.start]):04X}) at "
            f"character {error.start}",
        ) from error
    return value


def _message(turn: Any, where: str) -> Message:
    """One turn in OpenAI's vocabulary, with nothing in it but what a template can read."""
    if isinstance(turn, Mapping) and "role" not in turn and "from" in turn:
        turn = {**turn, "role": turn["from"], "content": turn.get("value")}
        if turn["role"] == "function_call":
            turn = {**turn, "content": None, "tool_calls": _spoken_calls(turn["content"], where)}
    if not isinstance(turn, Mapping) or "role" not in turn or not ("content" in turn or turn.get("tool_calls")):
        raise UserError(where, f"expected a mapping with role and content, got {shown_value(turn)}")
    role = turn["role"]
    role = _ALSO_CALLED.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        hint = near_matches(role, ROLES) if isinstance(role, str) else ""
        raise UserError(where, f"expected a role among {', '.join(ROLES)}, got {shown_value(role)}.{hint}")
    calls = _tool_calls(turn.get("tool_calls"), where) if role == "assistant" else []
    reasoning = next(
        (turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key) is not None), None
    )
    message: Message = {"role": role, "content": _content(turn.get("content"), where, bool(calls), role == "tool")}
    if calls:
        message["tool_calls"] = calls
    if role == "assistant" and reasoning is not None:
        message["reasoning_content"] = text_field(reasoning, f"{where}.reasoning_content", empty=True)
    for key in ("tool_call_id", "name"):
        if role == "tool" and turn.get(key) is not None:
            message[key] = text_field(turn[key], f"{where}.{key}")
    if not _is_trained(turn, role, where):
        message["train"] = False
    return message


def _check_order(message: Message, previous: Message | None, where: str) -> None:
    calls = previous is not None and "tool_calls" in previous
    before = None if previous is None else previous["role"]
    allowed: tuple[str, ...] = {
        None: ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("tool",) if calls else ("user",),
        "tool": ("tool", "assistant"),
    }[before]
    if message["role"] not in allowed:
        after = f"after a turn of {before}{' with tool calls' * calls}" if before else "as the first turn"
        raise UserError(where, f"roles out of order: expected {' or '.join(allowed)} {after}, got {message['role']}")


def _content(value: Any, where: str, calls: bool, tool: bool) -> str:
    """A turn's text, which some write as a list of parts; an assistant that calls tools, or a tool, may say nothing."""
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value)
    ):
        value = "".join(text_field(part.get("text"), where, empty=True) for part in value)
    return text_field("" if calls and value is None else value, where, empty=calls or tool)


def _is_trained(turn: Mapping[str, Any], role: str, where: str) -> bool:
    """`train`, or OpenAI's `weight` of 0 or 1, which says the same."""
    train = turn.get("train")
    if train is None and role == "assistant" and turn.get("weight") is not None:
        if turn["weight"] not in (0, 1):
            raise UserError(f"{where}.weight", f"expected 0 (not learnt) or 1, got {shown_value(turn['weight'])}")
        train = bool(turn["weight"])
    if train is None:
        return True
    if not isinstance(train, bool) or (train and role != "assistant"):
        expected = "true or false" if role == "assistant" else f"none, as a turn of {role} is never learnt"
        raise UserError(f"{where}.train", f"expected {expected}, got {shown_value(train)}")
    return train or role != "assistant"


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as templates read them: `{type: function, function: {name, arguments}}`, the arguments a mapping."""
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}.tool_calls", f"expected a list, got {shown_value(value)}")
    calls = []
    for number, call in enumerate(value):
        place = f"{where}.tool_calls[{number}]"
        function = (call.get("function") or call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise UserError(place, f"expected a mapping with name and arguments, got {shown_value(call)}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _from_json(arguments, f"{place}.arguments", "a mapping, or its JSON text")
        if not isinstance(arguments, Mapping | None):
            raise UserError(f"{place}.arguments", f"expected a mapping, or its JSON text, got {shown_value(arguments)}")
        named = {"name": text_field(function["name"], f"{place}.name"), "arguments": dict(arguments or {})}
        identity = {"id": text_field(call["id"], f"{place}.id")} if call.get("id") is not None else {}
        calls.append({**identity, "type": "function", "function": named})
    return calls


def _spoken_calls(value: Any, where: str) -> Any:
    """ShareGPT's `function_call`: the JSON text of a call, or of a list of them."""
    calls = _from_json(value, where, "a call, as JSON text {name, arguments}") if isinstance(value, str) else value
    return calls if isinstance(calls, list) else [calls]


def _from_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"expected {expected}, got {shown_value(text)}") from error


def check_template(template: str, columns: Sequence[str], argument: str) -> None:
    """Refuse a column or template that names what is not among `columns`."""
    if template in columns:
        return
    places = [match for match in _PLACE.finditer(template) if match[1] is not None]
    if not any(match[1] in columns for match in places):
        named = [match[1] for match in places if _NAME.fullmatch(match[1])]
        raise UserError(argument, f"{missing_column(named[0] if named else template, columns)}")
    for match in places:
        if match[1] not in columns and _NAME.fullmatch(match[1]):
            raise UserError(argument, f"{missing_column(match[1], columns)} (a literal brace is written twice: '{{{{')")


def fill_places(template: str, row: Mapping[str, Any], *, argument: str) -> str:
    """`template` with each `{column}` replaced by the row's text."""

    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in row:
            return match[0]
        return text_field(row[match[1]], f"{argument}: column {match[1]!r}")

    return _PLACE.sub(fill, template)


def missing_column(name: str, columns: Sequence[str]) -> str:
    """What to say of a column that is not there."""
    return f"no column {name!r} among {listed(columns)}.{near_matches(name, columns)}"


def listed(columns: Iterable[str]) -> str:
    """Names for an error, the first twenty of them."""
    names = [repr(column) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "(none)"


def shown_value(value: Any) -> str:
    """A value for an error, cut where it is long."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
