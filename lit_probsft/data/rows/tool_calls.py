"""Tools and calls of them, read from the vocabularies of OpenAI (old and new) and ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import shown_value, text_field
from lit_probsft.errors import UserError


def validate_tools(value: Any, *, argument: str = "tools") -> list[dict[str, Any]] | None:
    """Return the tools that a conversation may call, or None without any.

    Args:
        value: a list of JSON schemas, or the JSON text of one.
        argument: names it in errors.

    Raises:
        UserError: it is anything else.
    """
    if isinstance(value, str) and value.strip():
        value = from_json(value, argument, "a list of tools, or its JSON text")
    if value is None or value == "" or value == []:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(tool, Mapping) and tool for tool in value)
    ):
        raise UserError(argument, f"expected a list of tools, each a mapping (a JSON schema), got {shown_value(value)}")
    return [dict(tool) for tool in value]


def validate_functions(value: Any) -> list[dict[str, Any]] | None:
    """Return `functions`, OpenAI's older list of tools, as tools.

    Raises:
        UserError: as `validate_tools`.
    """
    functions = validate_tools(value, argument="functions")
    return functions and [{"type": "function", "function": function} for function in functions]


def calls_of_turn(turn: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the calls of an assistant turn as templates read them: `{type, function: {name, arguments}}`.

    Args:
        turn: has `tool_calls`, or OpenAI's older `function_call`, or neither.
        where: names the turn in errors.

    Raises:
        UserError: it has both, or a call has no name, or its arguments are no mapping.
    """
    calls, key = turn.get("tool_calls"), "tool_calls"
    if turn.get("function_call"):
        if calls:
            raise UserError(f"{where}.function_call", "expected none in a turn with tool_calls, its newer name")
        calls, key = turn["function_call"], "function_call"
        if isinstance(calls, str):
            calls = from_json(calls, f"{where}.{key}", "a mapping with name and arguments, or its JSON text")
        return [_call(calls, f"{where}.{key}")]
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UserError(f"{where}.{key}", f"expected a list, got {shown_value(calls)}")
    return [_call(call, f"{where}.{key}[{number}]") for number, call in enumerate(calls)]


def sharegpt_calls(value: Any, where: str) -> Any:
    """Return the calls in ShareGPT's `function_call` turn: the JSON text of a call, or of a list of calls."""
    calls = from_json(value, where, "a call, as JSON text {name, arguments}") if isinstance(value, str) else value
    return calls if isinstance(calls, list) else [calls]


def from_json(text: str, where: str, expected: str) -> Any:
    """Parse JSON text.

    Raises:
        UserError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"expected {expected}, got {shown_value(text)}") from error


def _call(call: Any, where: str) -> dict[str, Any]:
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise UserError(where, f"expected a mapping with name and arguments, got {shown_value(call)}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI writes "" for a call without arguments
        text = arguments.strip() or "{}"
        arguments = from_json(text, f"{where}.arguments", "a mapping, or its JSON text")
    if not isinstance(arguments, Mapping | None):
        raise UserError(f"{where}.arguments", f"expected a mapping, or its JSON text, got {shown_value(arguments)}")
    named = {"name": text_field(function["name"], f"{where}.name"), "arguments": dict(arguments or {})}
    identity = {"id": text_field(call["id"], f"{where}.id")} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": named}
