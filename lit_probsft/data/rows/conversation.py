"""A conversation, `[{"role": ..., "content": ...}, ...]`, checked turn by turn.

Nothing here reads files or tokenizes, so that evaluation can ask its questions in the same words as training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import shown_value, text_field
from lit_probsft.data.rows.stored_turns import stored_turns
from lit_probsft.errors import UserError, near_matches

Message = dict[str, Any]
"""One turn: `role` is system, user, assistant or tool; `content` is its text. An assistant turn may have `tool_calls`
(then its content may be empty), `reasoning_content`, and `train: False` to leave it unsupervised; a tool turn may have
`tool_call_id` and `name`."""

ROLES = ("system", "user", "assistant", "tool")

# Names of roles in other vocabularies: OpenAI's newer name for the system, and ShareGPT's names.
_ROLE_ALIASES = {
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


def validate_conversation(value: Any, *, argument: str = "messages", require_answer: bool = True) -> list[Message]:
    """Return `value` as plain messages if its turns are in order.

    A conversation is an optional system turn, then user and assistant turns in alternation. An assistant turn with
    tool calls is followed by tool turns and another assistant turn.

    Args:
        value: a list of mappings with `role` and `content` (OpenAI), or with `from` and `value` (ShareGPT), or another
            form of it, see `stored_turns`.
        argument: names it in errors.
        require_answer: the last turn must be the assistant's, as in training. Otherwise it may be the user's or a
            tool's (a prompt).

    Raises:
        UserError: names the turn that is wrong.
    """
    value = stored_turns(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(argument, f"expected a non-empty list of {{role, content}}, got {shown_value(value)}")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        message = _message(turn, f"{argument}[{index}]")
        _check_order(message, messages[-1] if messages else None, f"{argument}[{index}]")
        messages.append(message)
    last = messages[-1]["role"]
    if require_answer and last != "assistant":
        raise UserError(argument, f"expected the last turn to be the assistant's, got {last}")
    if not require_answer and last == "system":
        raise UserError(argument, "expected a user turn, got a system turn only")
    if require_answer and not any(is_supervised(message) for message in messages):
        raise UserError(argument, "expected an assistant turn to supervise, all have `train: false`")
    return messages


def is_supervised(message: Mapping[str, Any]) -> bool:
    """Whether this is an assistant turn without `train: False`."""
    return message["role"] == "assistant" and message.get("train", True) is not False


def validate_tools(value: Any, *, argument: str = "tools") -> list[dict[str, Any]] | None:
    """Return the tools that a conversation may call, or None without any.

    Args:
        value: a list of JSON schemas, or the JSON text of one.
        argument: names it in errors.

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


def _message(turn: Any, where: str) -> Message:
    """The turn in OpenAI's vocabulary, without keys that templates do not read."""
    if isinstance(turn, Mapping) and "role" not in turn and "from" in turn:
        turn = {**turn, "role": turn["from"], "content": turn.get("value")}
        if turn["role"] == "function_call":
            turn = {**turn, "content": None, "tool_calls": _sharegpt_calls(turn["content"], where)}
    if not isinstance(turn, Mapping) or "role" not in turn or not ("content" in turn or turn.get("tool_calls")):
        raise UserError(where, f"expected a mapping with role and content, got {shown_value(turn)}")
    role = turn["role"]
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
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
    if not _read_train(turn, role, where):
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
        position = f"after {before}{' with tool calls' * calls}" if before else "as the first turn"
        raise UserError(where, f"roles out of order: expected {' or '.join(allowed)} {position}, got {message['role']}")


def _content(value: Any, where: str, calls: bool, tool: bool) -> str:
    """The text of a turn, which may be a list of text parts. Empty only next to tool calls, or in a tool turn."""
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value)
    ):
        value = "".join(text_field(part.get("text"), where, empty=True) for part in value)
    return text_field("" if calls and value is None else value, where, empty=calls or tool)


def _read_train(turn: Mapping[str, Any], role: str, where: str) -> bool:
    """`train` of a turn, or OpenAI's equivalent, a `weight` of 0 or 1."""
    train = turn.get("train")
    if train is None and role == "assistant" and turn.get("weight") is not None:
        if turn["weight"] not in (0, 1):
            raise UserError(f"{where}.weight", f"expected 0 (not supervised) or 1, got {shown_value(turn['weight'])}")
        train = bool(turn["weight"])
    if train is None:
        return True
    if not isinstance(train, bool) or (train and role != "assistant"):
        expected = "true or false" if role == "assistant" else f"none, since a {role} turn is never supervised"
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
        call_name = f"{where}.tool_calls[{number}]"
        function = (call.get("function") or call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise UserError(call_name, f"expected a mapping with name and arguments, got {shown_value(call)}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _from_json(arguments, f"{call_name}.arguments", "a mapping, or its JSON text")
        if not isinstance(arguments, Mapping | None):
            raise UserError(
                f"{call_name}.arguments", f"expected a mapping, or its JSON text, got {shown_value(arguments)}"
            )
        named = {"name": text_field(function["name"], f"{call_name}.name"), "arguments": dict(arguments or {})}
        identity = {"id": text_field(call["id"], f"{call_name}.id")} if call.get("id") is not None else {}
        calls.append({**identity, "type": "function", "function": named})
    return calls


def _sharegpt_calls(value: Any, where: str) -> Any:
    """ShareGPT's `function_call`: the JSON text of a call, or of a list of calls."""
    calls = _from_json(value, where, "a call, as JSON text {name, arguments}") if isinstance(value, str) else value
    return calls if isinstance(calls, list) else [calls]


def _from_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"expected {expected}, got {shown_value(text)}") from error
