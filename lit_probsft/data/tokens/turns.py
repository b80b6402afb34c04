"""Finds the assistant's turns in the rendered text of a conversation, in one of three ways.

1. By the template's own `{% generation %}` marks, if it has any.
2. By prefix: the turn is what the text adds to the rendering of the messages before it.
3. By probe, where a template writes earlier turns differently once later ones follow: the conversation is rendered
   again with a probe in the turn, and the probe's position in the text locates the turn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.tokens.reasoning import split_reasoning
from lit_probsft.data.tokens.rendering import Renderer, Span, adds_bos, chosen_template, highlight, special_pattern
from lit_probsft.data.tokens.turn_checks import (
    PROBE,
    Messages,
    check_assistant_turn,
    check_context,
    check_tool_calls,
    insert_probe,
)
from lit_probsft.errors import UserError


def render_and_find_turns(
    tokenizer: Any,
    messages: Messages,
    turns: Collection[int],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """Render a conversation and find assistant turns in the text.

    A turn reaches up to and including the special token that ends it, if there is one.

    Args:
        tokenizer: provides the template and the special tokens.
        messages: `{"role", "content", ...}`.
        turns: indices of the messages to find, all of them the assistant's.
        tools: JSON schemas, for the template.
        chat_template: Jinja text, instead of the tokenizer's template.
        template_options: further names that the template may read.
        plain_text: use no template, see `tokenize_conversation`.
        generation_prompt: the text ends with the prompt for an answer.

    Returns:
        The text and the spans of the turns, ascending and not empty.

    Raises:
        UserError: there is no template, it is broken, it refuses the roles, a turn cannot be found, or the text lacks
            part of the conversation.
    """
    if plain_text:
        if tools:
            raise UserError("format", "plain text cannot represent tools; use a chat template that does")
        if template_options:
            raise UserError("template_options", "plain text has no chat template that could read them")
        return _concatenate(tokenizer, messages, turns)
    render = Renderer(tokenizer, chosen_template(tokenizer, chat_template), tools, template_options or {})
    if tools and "tools" not in render.template:
        raise UserError("chat_template", "the template leaves out the tools; use one that renders `tools`")
    for index in turns:
        check_tool_calls(render, messages, index, generation_prompt)
    found: list[tuple[int | None, Span]]
    if render.has_generation_marks:
        text, found = _find_by_marks(render, messages, turns, generation_prompt)
    else:
        text = render(messages, generation_prompt)
        finder = _TurnFinder(render, messages, text, generation_prompt, special_pattern(tokenizer))
        found = [(turn, finder.span(turn)) for turn in sorted(turns)]
    filled = [span for _, span in found if span[0] < span[1]]
    if filled:  # without any, the mask supervises nothing, which is refused later
        for message_index, span in found:
            if message_index is not None:
                last = message_index == len(messages) - 1
                check_assistant_turn(text, span, messages[message_index], special_pattern(tokenizer), last=last)
        check_context(text, messages)
    return text, filled


def ends_with_special(tokenizer: Any, text: str, span: Span) -> bool:
    """Whether a special token ends where the span ends."""
    return _last_special_end(text, span, special_pattern(tokenizer)) == span[1]


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


def _find_by_marks(
    render: Renderer, messages: Messages, turns: Collection[int], generation_prompt: bool
) -> tuple[str, list[tuple[int | None, Span]]]:
    """The text, and each span marked as generated with the index of its message, or None where that is ambiguous."""
    text, marks = render.with_marks(messages, generation_prompt)
    if not generation_prompt and not marks:
        raise UserError("chat_template", f"the template's generation marks cover nothing of:\n{highlight(text, [])}")
    special = special_pattern(render.tokenizer)
    all_turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(all_turns) == len(marks):
        pairs = [(index, mark) for index, mark in zip(all_turns, marks, strict=True) if index in turns]
        return text, [(index, _trim(text, mark, messages[index], special)) for index, mark in pairs]
    if set(turns) != set(all_turns):  # marks may leave turns out, or mark one twice
        raise UserError(
            "chat_template",
            f"the template marks {len(marks)} spans as generated for {len(all_turns)} assistant turns, so the turns "
            f"cannot be told apart; the marked spans are between ⟦ and ⟧:\n{highlight(text, marks)}",
        )
    return text, [(None, _trim(text, mark, None, special)) for mark in marks]


@dataclass(frozen=True)
class _TurnFinder:
    """Finds turns in `text`, which is `render(messages, generation_prompt)`."""

    render: Renderer
    messages: Messages
    text: str
    generation_prompt: bool
    special: re.Pattern[str]

    def span(self, index: int) -> Span:
        """Find turn `index`.

        Raises:
            UserError: neither prefix nor probe locates it.
        """
        last = index == len(self.messages) - 1
        before = self.render(self.messages[:index], True)
        through = self.text if last else self.render(self.messages[: index + 1], False)
        if self.text.startswith(before) and through.startswith(before):
            # Some templates write the end of the text after the last turn only. Then the two differ after the turn.
            span = len(before), _common_end(through, self.text, len(before))
            end = _end_of_turn(self.text, span, self.messages[index], self.special)
            if end is not None or self.text.startswith(through):
                return _trim(self.text, span, self.messages[index], self.special)
        if last:
            raise UserError(
                "chat_template",
                "the generation prompt differs from the text before the last answer, so the model would be prompted "
                "with a text it was not trained on; use a template of your own.\n"
                f"Prompt: {highlight(before, [])}\nTraining: {highlight(self.text, [])}",
            )
        span_by_probe = self._span_by_probe(index)
        if span_by_probe is None:
            raise UserError(
                "chat_template",
                f"the template renders earlier turns differently once later turns follow, so the assistant's turn "
                f"{index} cannot be found; split such conversations (`rewritten_history: split`), supervise the last "
                f"turn only (`turns: last`), or mark it with {{% generation %}} in a template of your own.\n"
                f"Up to the turn: {highlight(before, [])}\nWith the turn: {highlight(through, [])}\n"
                f"Whole conversation: {highlight(self.text, [])}",
            )
        return span_by_probe

    def _span_by_probe(self, index: int) -> Span | None:
        """The turn's span, from the probe's positions at the end of the message before it and of the turn itself.

        None unless each probe appears exactly once and leaves the rest of the text unchanged.
        """
        probe = PROBE
        while probe in self.text:
            probe += "q"
        found = []
        for probed in (index - 1, index):
            messages = insert_probe(self.messages, probed, probe)
            whole = self.render(messages, self.generation_prompt)
            if whole.count(probe) != 1 or whole.replace(probe, "") != self.text:
                return None
            # What the template writes after the message when it is the last: a generation prompt, or the turn's end.
            rendered = self.render(messages[: probed + 1], probed < index)
            found.append((whole.index(probe), rendered.partition(probe)[2]))
        (before_turn, prompt), (content_end, ending) = found
        if not self.text.startswith(prompt, before_turn):
            return None
        end = content_end + _common_end(ending, self.text[content_end:])
        token = self.special.search(self.text, content_end, end)
        return before_turn + len(prompt), content_end if token is None else token.end()


def _common_end(one: str, other: str, start: int = 0) -> int:
    """End of the common prefix of two texts that are equal up to `start`."""
    if other.startswith(one):  # nearly always, and the search below compares single characters
        return len(one)
    return start + len(os.path.commonprefix([one[start:], other[start:]]))  # noqa: RUF071 (by character)


def _trim(text: str, span: Span, message: Mapping[str, Any] | None, special: re.Pattern[str]) -> Span:
    """End `span` after the special token that ends the turn, since the model does not generate what follows.

    That is the first special token after the turn's content (templates may add the end of the text or a line break) or,
    where the content cannot be found, the last one with only white space after it. Without one the span stays.
    """
    start, end = span
    if message is not None and (last := _end_of_turn(text, span, message, special)) is not None:
        return start, last
    last = _last_special_end(text, span, special)
    return (start, last) if last is not None and not text[last:end].strip() else span


def _end_of_turn(text: str, span: Span, message: Mapping[str, Any], special: re.Pattern[str]) -> int | None:
    """End of the first special token after the turn's content. An answer `end` does not match inside `<|im_end|>`."""
    calls = message.get("tool_calls")
    content = calls[-1]["function"]["name"] if calls else split_reasoning(message["content"])[1]
    start, end = span
    tokens = [(match.start(), match.end()) for match in special.finditer(text, start, end)]
    position = text.rfind(content, start, end) if content else -1
    while position >= 0:
        stop = position + len(content)
        if not any(first < position < last or first < stop < last for first, last in tokens):
            return next((last for first, last in tokens if first >= stop), None)
        position = text.rfind(content, start, stop - 1)
    return None


def _last_special_end(text: str, span: Span, special: re.Pattern[str]) -> int | None:
    """End of the last special token in the span."""
    end = None
    for match in special.finditer(text, *span):
        end = match.end()
    return end
