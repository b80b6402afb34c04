"""Finds the assistant's turns in the text of a conversation.

The text is the prompt that asks for the last answer, and the answer (`answers.py`). A turn starts where the prompt that
asks for it ends, and reaches to what stops the model's generation (`turn_ends.py`). Where the template writes an
earlier turn differently from its prompt, probes in the contents locate it (`earlier_turns.py`). Where the template
marks with `{% generation %}` what the assistant writes, the marks say where a turn ends (`marks.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lit_probsft.data.tokens.answers import Joined, join_answer, next_role
from lit_probsft.data.tokens.earlier_turns import EarlierTurns, RewrittenHistory
from lit_probsft.data.tokens.marks import ambiguous_marks, spans_by_turn, without_trailing_space
from lit_probsft.data.tokens.prompts import prompt_for
from lit_probsft.data.tokens.reasoning import closes_reasoning, reasoning_of, without_reasoning
from lit_probsft.data.tokens.rendering import Renderer, Span, adds_bos, highlight, special_pattern
from lit_probsft.data.tokens.tokenizers import stop_tokens
from lit_probsft.data.tokens.turn_checks import Messages, check_assistant_turn, check_context, check_tool_calls
from lit_probsft.data.tokens.turn_ends import find_content_end, find_end
from lit_probsft.errors import UserError


def render_and_find_turns(
    tokenizer: Any,
    base: Renderer | None,
    messages: Messages,
    turns: Collection[int],
    *,
    generation_prompt: bool = False,
    answer: Mapping[str, Any] | None = None,
) -> tuple[str, list[Span]]:
    """Render a conversation and find assistant turns in the text.

    A turn reaches up to and including the token that stops the model, if there is one.

    Args:
        tokenizer: provides the special tokens.
        base: renders messages with the options that the user has set. None concatenates them without a template.
        messages: `{"role", "content", ...}`.
        turns: indices of the messages to find, all of them the assistant's.
        generation_prompt: the text ends with the prompt for an answer.
        answer: the assistant's message that the prompt asks for, if it is known. It is not part of the text.

    Returns:
        The text and the spans of the turns, ascending and not empty.

    Raises:
        RewrittenHistory: an earlier turn cannot be found, because the template renders it differently.
        UserError: the template is broken, it refuses the roles, the last turn cannot be found, or the text
            lacks part of the conversation.
    """
    if base is None:
        return _concatenate(tokenizer, messages, turns)
    if base.tools and "tools" not in base.template:
        raise UserError("chat_template", "the template leaves out the tools; use one that renders `tools`")
    context, asks = messages, generation_prompt
    if not generation_prompt and messages[-1]["role"] == "assistant":
        context, answer, asks = messages[:-1], messages[-1], True
    render, prompt = prompt_for(base, context, answer) if asks else (base, base(context))
    for index in turns:
        check_tool_calls(render, messages, index, generation_prompt)
    special = special_pattern(tokenizer)
    earlier = EarlierTurns(base, render, context, prompt, asks, special, stop_tokens(tokenizer))
    find = _find_by_marks if base.has_generation_marks else _find_by_prompts
    text, found = find(earlier, turns, answer, with_answer=len(messages) > len(context))
    filled = [span for _, spans in found for span in spans if span[0] < span[1]]
    if filled:  # without any, the mask supervises nothing, which is refused later
        for turn, spans in found:
            if turn is not None and spans:
                whole = spans[0][0], spans[-1][1]
                check_assistant_turn(text, whole, messages[turn], special, last=turn == len(messages) - 1)
        check_context(text, messages)
    return text, filled


def ends_with_special(tokenizer: Any, text: str, span: Span) -> bool:
    """Whether a special token ends where the span ends."""
    return find_end(text, span, special_pattern(tokenizer)) == span[1]


def _concatenate(tokenizer: Any, messages: Messages, turns: Collection[int]) -> tuple[str, list[Span]]:
    """The turns one after the other, with the end-of-text token after each assistant turn."""
    end = tokenizer.eos_token
    if end is None:
        raise UserError(
            "format", "plain text ends each answer with the tokenizer's eos token, and this tokenizer has none"
        )
    text = tokenizer.bos_token if adds_bos(tokenizer) else ""
    spans = []
    for index, message in enumerate(messages):
        for part in ("tool_calls", "reasoning_content"):
            if message.get(part):
                raise UserError("format", f"plain text cannot represent {part}; use a chat template that does")
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant":
            text += end
        if index in turns:
            spans.append((start, len(text)))
    return text, spans


_Found = list[tuple[int | None, list[Span]]]
"""The index of a message, None where that is ambiguous, and the spans of what the model writes there."""


def _find_by_prompts(
    earlier: EarlierTurns, turns: Collection[int], answer: Mapping[str, Any] | None, *, with_answer: bool
) -> tuple[str, _Found]:
    """The text and the turns, each from its prompt to its end."""
    last = len(earlier.messages)
    found: _Found = [(turn, [earlier.span(turn)]) for turn in sorted(turns) if turn < last]
    if not with_answer or answer is None:
        return earlier.text, found
    messages = [*earlier.messages, answer]
    joined = join_answer(earlier.render, earlier.text, messages, whole := earlier.render(messages))
    if joined is None:
        advice = "use a template of your own"
        if closes_reasoning(earlier.text) and reasoning_of(answer):
            advice = "the prompt asks for no reasoning, which the answer has: remove it (`reasoning: drop`)"
        raise UserError(
            "chat_template",
            "the generation prompt differs from the text before the last answer, so the model would be prompted "
            f"with a text it was not trained on; {advice}.\n"
            f"Prompt: {highlight(earlier.text, [])}\nTraining: {highlight(whole, [])}",
        )
    if last not in turns:
        return joined.text, found
    text, span = _last_turn(earlier, joined, messages)
    return text, [*found, (last, [span])]


def _last_turn(earlier: EarlierTurns, joined: Joined, messages: Messages) -> tuple[str, Span]:
    """The text and the last turn in it. If nothing ends the turn, the token of the next role is appended."""
    text, start, special = joined.text, joined.start, earlier.special
    content_end = find_content_end(text, (start, len(text)), messages[-1], special)
    if content_end is None:
        return text, without_trailing_space(text, [(start, len(text))], special)[0]
    end = find_end(text, (content_end, len(text)), special, earlier.stops)
    if end is None:
        text += next_role(earlier.render, messages, text[content_end:], special)
        end = len(text)
    return text, (start, end)


def _find_by_marks(
    earlier: EarlierTurns, turns: Collection[int], answer: Mapping[str, Any] | None, *, with_answer: bool
) -> tuple[str, _Found]:
    """The text, and what the template marks in each turn, without what the turn's prompt gives."""
    last = len(earlier.messages)
    messages = earlier.messages if answer is None else [*earlier.messages, answer]
    text, marks, joined = _marked_text(earlier, answer)
    if joined is None and not with_answer:
        messages = earlier.messages
        text, marks = earlier.render.with_marks(messages, earlier.prompts)
    if with_answer and not marks:
        raise UserError("chat_template", f"the template's generation marks cover nothing of:\n{highlight(text, [])}")

    def start_of(turn: int) -> int | None:
        if turn == last:
            return None if joined is None else joined.start
        try:
            return earlier.start(turn)
        except RewrittenHistory:
            return None

    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    by_turn = spans_by_turn(marks, indices, start_of)
    if by_turn is None:
        if set(turns) != {index for index in indices if with_answer or index < last}:
            raise ambiguous_marks(text, marks, indices)
        if not with_answer:
            text, marks = earlier.text, [mark for mark in marks if mark[1] <= len(earlier.text)]
        return text, [(None, without_trailing_space(text, marks, earlier.special))]
    # If the prompt does not reach into the mark of the last turn, none reaches into that of an earlier one.
    reaches = joined is None or any(first < joined.start < end for first, end in by_turn[-1])
    found: _Found = []
    for turn, spans in zip(indices, by_turn, strict=True):
        if turn not in turns:
            continue
        if (turn == last or reaches) and (start := start_of(turn)) is not None:
            spans = [(max(first, start), end) for first, end in spans if end > start]  # without the turn's prompt
        if turn == last and joined is not None and joined.inserted and spans:
            spans[0] = (joined.start, spans[0][1])
        found.append((turn, without_trailing_space(text, spans, earlier.special)))
    return text if with_answer else earlier.text, found


def _marked_text(earlier: EarlierTurns, answer: Mapping[str, Any] | None) -> tuple[str, list[Span], Joined | None]:
    """The text with the answer, if it is known, and its marks."""
    if answer is None:
        text, marks = earlier.render.with_marks(earlier.messages, earlier.prompts)
        return text, marks, None
    messages = [*earlier.messages, answer]
    whole, marks = earlier.render.with_marks(messages)
    joined = join_answer(earlier.render, earlier.text, messages, whole)
    if joined is None or joined.text == whole:
        return whole, marks, joined
    if joined.whole != whole:
        marks = earlier.render.with_marks([*earlier.messages, without_reasoning(answer)])[1]
    placed = [(joined.place(max(first, joined.cut)), joined.place(end)) for first, end in marks if end > joined.cut]
    return joined.text, [*earlier.render.with_marks(earlier.messages, True)[1], *placed], joined
