"""Checks that a rendered text holds what the conversation says: tool calls, context and the assistant's turns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.reasoning import split_reasoning
from lit_probsft.data.tokens.rendering import Renderer, Span, highlight, special_pattern
from lit_probsft.errors import UserError

Messages = Sequence[Mapping[str, Any]]

PROBE = "xqzprobe"
"""A word that no template and hardly any text contains."""


def unused_probe(*texts: str) -> str:
    """Return a probe that is in none of the texts."""
    probe = PROBE
    while any(probe in text for text in texts):
        probe += "q"
    return probe


def insert_probe(messages: Messages, index: int, probe: str = PROBE) -> list[Mapping[str, Any]]:
    """Insert a probe in message `index`, after the name of its last tool call, or else after its content.

    Where it appears in the rendered text, the template writes that message.
    """
    message = messages[index]
    calls = list(message.get("tool_calls") or [])
    if calls:
        function = calls[-1]["function"]
        calls[-1] = {**calls[-1], "function": {**function, "name": function["name"] + probe}}
        changed = {**message, "tool_calls": calls}
    else:
        content = message["content"]
        stripped = content.rstrip()  # a template may trim the rest
        changed = {**message, "content": stripped + probe + content[len(stripped) :]}
    return [*messages[:index], changed, *messages[index + 1 :]]


def insert_probe_before(messages: Messages, index: int, probe: str = PROBE) -> list[Mapping[str, Any]]:
    """Insert a probe in message `index`, before its answer: behind reasoning in the content, which may be left out."""
    content = messages[index]["content"]
    reasoning, closing, answer = content.rpartition("</think>")
    space = answer[: len(answer) - len(answer.lstrip())]
    changed = {**messages[index], "content": reasoning + closing + space + probe + answer[len(space) :]}
    return [*messages[:index], changed, *messages[index + 1 :]]


def check_tool_calls(render: Renderer, messages: Messages, index: int, generation_prompt: bool) -> None:
    """Refuse tool calls that the template leaves out, or that contain special tokens, which would hide the turn's end.

    Raises:
        UserError: shows the call or the text.
    """
    calls = messages[index].get("tool_calls") or []
    for call in calls:
        written = json.dumps(call["function"], ensure_ascii=False)
        if special_pattern(render.tokenizer).search(written):
            raise UserError("messages", f"expected no special token in a tool call, got {written[:200]}")
    if calls and PROBE not in render(insert_probe(messages, index), generation_prompt):
        raise UserError(
            "chat_template",
            "the template leaves out tool calls; use one that writes them. It renders:\n"
            f"{highlight(render(messages, generation_prompt), [])}",
        )


def check_context(text: str, messages: Messages) -> None:
    """Refuse a text that lacks a turn of the system, user or a tool: the assistant would answer what it cannot see.

    Raises:
        UserError: names the turn and shows the text.
    """
    for index, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "assistant" or content in text:
            continue
        if json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            raise UserError(
                "chat_template",
                f"the template leaves out or changes turn {index} ({message['role']}), {content[:80]!r}; it renders:\n"
                f"{highlight(text, [])}",
            )


def check_assistant_turn(
    text: str, span: Span, message: Mapping[str, Any], special: re.Pattern[str], *, last: bool
) -> None:
    """Refuse a turn that lacks part of what the assistant says. Only reasoning before the last turn may be missing.

    Raises:
        UserError: names the part and shows the text.
    """
    turn = text[span[0] : span[1]]
    without_special = special.sub("\0", turn)  # `<eof>` does not call a function `f`
    for call in message.get("tool_calls") or []:
        for part in (call["function"]["name"], *call["function"]["arguments"]):
            if part not in without_special and json.dumps(part, ensure_ascii=False)[1:-1] not in without_special:
                raise UserError(
                    "chat_template",
                    f"the template leaves out part of a tool call, {part!r}:\n{highlight(text, [span])}",
                )
    reasoning, answer = split_reasoning(message["content"])
    required = [answer, *([reasoning, message.get("reasoning_content", "").strip()] if last else [])]
    for part in required:
        if part not in turn:
            raise UserError(
                "chat_template",
                f"the template leaves out or changes part of the assistant's turn, {part[:80]!r}; the turn is "
                f"between ⟦ and ⟧:\n{highlight(text, [span])}",
            )
