"""The assistant's reasoning, `<think>...</think>` or `reasoning_content`: dropped, or kept without supervision.

A block reaches from `<think>` to the next `</think>`. An answer may have several, with text around them. Where the
prompt has opened the first block, it reaches from the beginning to `</think>`. A tag that an answer only mentions
belongs to no block: one in code, a `<think>` that is never closed, a `</think>` within a line of prose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.rendering import Span, highlight
from lit_probsft.errors import UserError

# Code in Markdown hides the tags in it: a fenced block, or a span of backticks within a line.
_TAG_OR_CODE = re.compile(
    r"^ {0,3}(?P<fence>```+|~~~+)[^\n]*\n.*?^ {0,3}(?P=fence)"
    r"|(?<!`)(?P<ticks>`+)(?!`)[^\n]*?(?<!`)(?P=ticks)(?!`)"
    r"|(?P<tag></?think>)",
    re.DOTALL | re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_OPENS_BLOCK = re.compile(r"\s*<think>[^\S\n]*(\n|\Z)")
"""An answer that begins with `<think>` on a line of its own means it, so it has to close it."""
_ENDS_BLOCK = re.compile(r"</think>(?=[^\s.,;:!?)\]'\"]|[^\S\n]*(?:\n|\Z))")
"""A `</think>` that ends a line or joins the answer, unlike one in prose."""


def split_reasoning(content: str) -> tuple[str, str]:
    """Split a turn's content into reasoning and answer, without white space around them."""
    before, _, answer = content.rpartition("</think>")
    return before.partition("<think>")[2].strip(), answer.strip()


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the reasoning of an assistant's turn, or an empty text."""
    apart: str = message.get("reasoning_content") or ""
    return apart.strip() or split_reasoning(message["content"])[0]


def without_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an assistant's message without its reasoning."""
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return {**kept, "content": split_reasoning(message["content"])[1] or message["content"]}


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends within reasoning that it has opened."""
    return prompt.rstrip().endswith("<think>")


def closes_reasoning(prompt: str) -> bool:
    """Whether a prompt ends after reasoning that it has closed."""
    return prompt.rstrip().endswith("</think>")


def drop_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without the assistant's reasoning.

    Raises:
        UserError: a turn has nothing but reasoning, or does not close it.
    """
    result = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key != "reasoning_content"}
        if message["role"] == "assistant" and (blocks := find_blocks(content := message["content"])):
            edges = [0, *(edge for block in blocks for edge in block), len(content)]
            kept["content"] = "".join(content[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)).strip()
            if not kept["content"] and not message.get("tool_calls"):
                raise UserError("reasoning", "expected an answer after </think>, got nothing")
        result.append(kept)
    return result


def exclude_reasoning(text: str, spans: Sequence[Span]) -> list[Span]:
    """Cut the reasoning out of the supervised spans.

    Raises:
        UserError: an answer's reasoning is not closed.
    """
    kept: list[Span] = []
    for start, end in spans:
        position = start
        for first, last in find_blocks(text[start:end], is_open=opens_reasoning(text[:start])):
            if position < start + first:
                kept.append((position, start + first))
            position = start + last
        if position < end:
            kept.append((position, end))
    return kept


def mask_reasoning(text: str, spans: Sequence[Span], messages: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Cut the reasoning out of the supervised spans, which are those of `messages`.

    Raises:
        UserError: an answer's reasoning is not closed, or the template writes reasoning without `<think>`.
    """
    kept, whole = [], []
    for span in spans:
        parts = exclude_reasoning(text, [span])
        kept += parts
        whole += [text[start:end] for start, end in parts if (start, end) == span]
    supervised = "\0".join(whole)
    answers = json.dumps([(turn["content"], turn.get("tool_calls")) for turn in messages], ensure_ascii=False)
    for message in messages:
        reasoning = (message.get("reasoning_content") or "").strip()
        if reasoning and supervised.count(reasoning) > answers.count(json.dumps(reasoning, ensure_ascii=False)[1:-1]):
            raise UserError(
                "reasoning",
                "`mask` needs a template that writes reasoning between <think> and </think>; this one writes it in "
                f"another way. `learn` supervises it and `drop` removes it. It renders:\n{highlight(text, kept)}",
            )
    return kept


def find_blocks(answer: str, *, is_open: bool = False) -> list[Span]:
    """Find the blocks of reasoning in an answer, each with the white space after it.

    Args:
        answer: what the assistant says.
        is_open: the text before the answer has opened a block.

    Raises:
        UserError: the block that the answer begins with is not closed.
    """
    if "</think>" not in answer:
        if is_open or _OPENS_BLOCK.match(answer):
            raise UserError("reasoning", f"expected </think> after <think>, got none in:\n{highlight(answer, [])}")
        return []
    blocks: list[Span] = []
    first = next(_tags(answer, 0), None)
    if is_open or (first is not None and first[0] == "</think>" and _ends_block(answer, first.start())):
        blocks.append((0, _block_end(answer, 0, required=True)))
    while block := _next_block(answer, blocks[-1][1] if blocks else 0):
        blocks.append(block)
    return blocks


def _next_block(text: str, start: int) -> Span | None:
    """The next block that `<think>` opens, from `start` on.

    Of several `<think>` before a `</think>`, the first that begins a line opens it: the ones before it are mentioned,
    and the ones after it are part of the reasoning.
    """
    found: list[int] = []
    for tag in _tags(text, start):
        if tag[0] == "<think>":
            found.append(tag.start())
        elif found:
            break
    if not found:
        return None
    opening = next((position for position in found if _begins_line(text, position)), found[0])
    end = _block_end(text, opening + len("<think>"), required=_begins_line(text, opening))
    return None if end == 0 else (opening, end)


def _block_end(text: str, start: int, *, required: bool) -> int:
    """Where the block ends whose reasoning begins at `start`, with the white space after it; 0 if it has no end.

    A `</think>` in code ends only a block that is `required` to end: its reasoning may leave code unfinished.
    """
    closing = next((tag.start() for tag in _tags(text, start) if tag[0] == "</think>"), -1)
    if closing < 0 and required:
        closing = text.find("</think>", start)
    if closing < 0:
        return 0
    space = _SPACE.match(text, closing + len("</think>"))
    assert space is not None
    return space.end()


def _tags(text: str, start: int) -> Iterator[re.Match[str]]:
    """The tags from `start` on, without those in code."""
    return (match for match in _TAG_OR_CODE.finditer(text, start) if match["tag"])


def _ends_block(text: str, position: int) -> bool:
    """Whether a `</think>` without `<think>` ends a block that the prompt has opened, or is only mentioned."""
    return _begins_line(text, position) or _ENDS_BLOCK.match(text, position) is not None


def _begins_line(text: str, position: int) -> bool:
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()
