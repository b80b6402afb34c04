"""Finds the end of a turn: what the model has to write so that its generation stops.

That is everything up to the first stop token: the tokenizer's end-of-text token, or one of the model's generation
config. Where the turn has none, it is everything up to the last special token that the template writes before the next
turn's header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from lit_probsft.data.tokens.reasoning import split_reasoning
from lit_probsft.data.tokens.rendering import Span


def common_end(one: str, other: str, start: int = 0) -> int:
    """Return the end of the common prefix of two texts that are equal up to `start`."""
    if other.startswith(one):  # nearly always, and the search below compares single characters
        return len(one)
    return start + len(os.path.commonprefix([one[start:], other[start:]]))  # noqa: RUF071 (by character)


def find_content_end(text: str, span: Span, message: Mapping[str, Any], special: re.Pattern[str]) -> int | None:
    """Find the end of a turn's content, or of the name of its last call, in `span`.

    None if the text does not have it. An answer `end` does not match inside `<|im_end|>`.
    """
    calls = message.get("tool_calls")
    content = calls[-1]["function"]["name"] if calls else split_reasoning(message["content"])[1]
    start, end = span
    tokens = [(match.start(), match.end()) for match in special.finditer(text, start, end)]
    position = text.rfind(content, start, end) if content else -1
    while position >= 0:
        stop = position + len(content)
        if not any(first < position < last or first < stop < last for first, last in tokens):
            return stop
        position = text.rfind(content, start, stop - 1)
    return None


def find_end(text: str, ending: Span, special: re.Pattern[str], stops: Collection[str] = ()) -> int | None:
    """Find the end of a turn.

    Args:
        text: of the conversation.
        ending: what the template writes after the turn's content, before the next turn's header.
        special: matches special tokens.
        stops: the tokens that stop generation.

    Returns:
        The end of the first stop token, or else of the last special token; None without any.
    """
    end = None
    for match in special.finditer(text, *ending):
        end = match.end()
        if match[0] in stops:
            break
    return end
