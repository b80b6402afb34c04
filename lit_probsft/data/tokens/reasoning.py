"""The assistant's reasoning, `<think>...</think>` or `reasoning_content`: dropped, or kept without supervision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.rendering import Span, highlight
from lit_probsft.errors import UserError

_REASONING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_REST_OF_REASONING = re.compile(r".*?</think>\s*", re.DOTALL)


def split_reasoning(content: str) -> tuple[str, str]:
    """Split a turn's content into reasoning and answer, without white space around them."""
    before, _, answer = content.rpartition("</think>")
    return before.partition("<think>")[2].strip(), answer.strip()


def drop_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without the assistant's reasoning.

    Raises:
        UserError: a turn has nothing but reasoning.
    """
    result = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key != "reasoning_content"}
        if message["role"] == "assistant" and "</think>" in message["content"]:
            kept["content"] = split_reasoning(message["content"])[1]
            if not kept["content"] and not message.get("tool_calls"):
                raise UserError("reasoning", "expected an answer after </think>, got nothing")
        result.append(kept)
    return result


def exclude_reasoning(text: str, spans: Sequence[Span]) -> list[Span]:
    """Cut the reasoning out of the supervised spans.

    Raises:
        UserError: a `<think>` is not closed.
    """
    kept: list[Span] = []
    for start, end in spans:
        opened = text[:start].rstrip().endswith("<think>")  # by the template's generation prompt
        found = _REST_OF_REASONING.match(text, start, end) if opened else _REASONING.search(text, start, end)
        while found is not None:
            if start < found.start():
                kept.append((start, found.start()))
            start, opened = found.end(), False
            found = _REASONING.search(text, start, end)
        if opened or "<think>" in text[start:end]:
            raise UserError(
                "reasoning", f"expected </think> after <think>, got none in:\n{highlight(text, [(start, end)])}"
            )
        if start < end:
            kept.append((start, end))
    return kept
