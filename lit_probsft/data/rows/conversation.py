"""A conversation, `[{"role": ..., "content": ...}, ...]`, checked turn by turn.

Nothing here reads files or tokenizes, so that evaluation can ask its questions in the same words as training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.rows.columns import shown_value, text_field
from lit_probsft.data.rows.labels import Label
from lit_probsft.data.rows.stored_turns import stored_turns
from lit_probsft.data.rows.tool_calls import calls_of_turn, sharegpt_calls
from lit_probsft.errors import UserError, near_matches

Message = dict[str, Any]
"""One turn: `role` is system, user, assistant or tool; `content` is its text. An assistant turn may have `tool_calls`
(then its content may be empty), `reasoning_content`, and `train: False` to leave it unsupervised; a tool turn may have
`tool_call_id` and `name`. Any other key that holds a value is passed to the chat template."""

ROLES = ("system", "user", "assistant", "tool")

# Names of roles in other vocabularies: OpenAI's newer one for the system and older one for tools, and ShareGPT's.
_ROLE_ALIASES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}

# Names of reasoning, the one that most templates read first.
_REASONING = ("reasoning_content", "reasoning", "thinking")

# Keys of a turn that are read here, by role.
_READ = {
    role: frozenset({"role", "content", "tool_calls", "function_call", "train", "weight", *further})
    for role, further in {"system": (), "user": (), "assistant": _REASONING, "tool": ("tool_call_id", "name")}.items()
}


def validate_conversation(value: Any, *, argument: str = "messages", require_answer: bool = True) -> list[Message]:
    """Return `value` as plain messages if its turns are in order.

    A conversation is an optional system turn, then user and assistant turns in alternation. An assistant turn with
    tool calls is followed by tool turns and another assistant turn. A system turn without text is left out.

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
        where, turn = f"{argument}[{index}]", _as_openai(turn)
        if not index and _is_empty_system(turn, where):
            continue
        message = _message(turn, where)
        _check_order(message, messages[-1] if messages else None, where)
        messages.append(message)
    last = messages[-1]["role"] if messages else "system"
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


def _is_empty_system(turn: Any, where: str) -> bool:
    if not isinstance(turn, Mapping) or turn.get("role") not in ("system", "developer"):
        return False
    content = _join_parts(turn.get("content"), where)
    return not content or (isinstance(content, str) and not content.strip())


def _as_openai(turn: Any) -> Any:
    """The turn with `role` and `content` in place of ShareGPT's `from` and `value`, and a class label as its name."""
    if not isinstance(turn, Mapping):
        return turn
    if "role" not in turn and "from" in turn:
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        turn = {**rest, "role": turn["from"], "content": turn.get("value")}
    role = turn.get("role")
    return {**turn, "role": role.name} if isinstance(role, Label) else turn


def _message(turn: Any, where: str) -> Message:
    """The checked turn in OpenAI's vocabulary. Keys that are not read here are copied if they hold a value."""
    if not isinstance(turn, Mapping) or "role" not in turn:
        raise _not_a_turn(turn, where)
    role = turn["role"]
    if role == "function_call":
        turn = {**turn, "content": None, "tool_calls": sharegpt_calls(turn.get("content"), where)}
    calls_key = "tool_calls" if turn.get("tool_calls") else "function_call" if turn.get("function_call") else ""
    if "content" not in turn and not calls_key:
        raise _not_a_turn(turn, where)
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        hint = near_matches(role, ROLES) if isinstance(role, str) else ""
        raise UserError(where, f"expected a role among {', '.join(ROLES)}, got {shown_value(role)}.{hint}")
    if calls_key and role != "assistant":
        raise UserError(f"{where}.{calls_key}", f"expected none in a {role} turn, got {shown_value(turn[calls_key])}")
    calls = calls_of_turn(turn, where) if role == "assistant" else []
    message: Message = {"role": role, "content": _content(turn.get("content"), where, bool(calls), role == "tool")}
    if calls:
        message["tool_calls"] = calls
    if role == "assistant":
        reasoning = next((turn[key] for key in _REASONING if turn.get(key) is not None), None)
        if reasoning is not None:
            message["reasoning_content"] = text_field(reasoning, f"{where}.reasoning_content", empty=True)
    elif role == "tool":
        for key in ("tool_call_id", "name"):
            if turn.get(key) is not None:
                message[key] = text_field(turn[key], f"{where}.{key}")
    if further := turn.keys() - _READ[role]:
        message |= {key: turn[key] for key in turn if key in further and turn[key] not in (None, "", [], {})}
    if not _read_train(turn, role, where):
        message["train"] = False
    return message


def _not_a_turn(turn: Any, where: str) -> UserError:
    return UserError(where, f"expected a mapping with role and content, got {shown_value(turn)}")


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


def _join_parts(value: Any, where: str) -> Any:
    """The text of a list of text parts; any other value as it is."""
    if (
        not isinstance(value, str)
        and isinstance(value, Sequence)
        and value
        and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value)
    ):
        return "".join(text_field(part.get("text"), where, empty=True) for part in value)
    return value


def _content(value: Any, where: str, calls: bool, tool: bool) -> str:
    """The text of a turn, which may be a list of text parts. Empty only next to tool calls, or in a tool turn."""
    value = _join_parts(value, where)
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
