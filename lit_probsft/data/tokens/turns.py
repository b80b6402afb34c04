"""Where the assistant's turns are in the text of a conversation.

They are found by the chat template's own `{% generation %}` marks where it has them, otherwise by rendering the
conversation up to each, and where a template writes earlier turns differently once later ones follow, by rendering the
whole once more with a probe in the turn and looking where the probe appears.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.tokens.rendering import Renderer, Span, adds_beginning, chosen_template, shown, special_pattern
from lit_probsft.errors import UserError

Messages = Sequence[Mapping[str, Any]]

_END_OF_REASONING = "</think>"


def find_turns(
    tokenizer: Any,
    messages: Messages,
    wanted: Collection[int],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    plain_text: bool = False,
    generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """The text of a conversation and, ascending, where the wanted turns of the assistant are in it.

    A turn goes up to and with the special token that ends it, as far as there is one.

    Args:
        tokenizer: whose template and special tokens are used.
        messages: `{"role", "content", ...}`.
        wanted: which of the messages to find, all of them the assistant's.
        tools: for the template.
        chat_template: Jinja text in place of the tokenizer's.
        plain_text: no template, see `tokenize_conversation`.
        generation_prompt: the text asks for an answer at its end.

    Raises:
        UserError: there is no template, it is broken, it refuses the roles, a turn cannot be found, or what is found
            is not what the assistant says.
    """
    if plain_text:
        if tools:
            raise UserError("format", "plain text has no form for tools; use a chat template that has")
        return _write_plainly(tokenizer, messages, wanted)
    render = Renderer(tokenizer, chosen_template(tokenizer, chat_template), tools)
    if tools and "tools" not in render.template:
        raise UserError(
            "chat_template", "it does not tell the model which tools there are; use one that writes `tools`"
        )
    for wanted_index in wanted:
        _check_calls(render, messages, wanted_index, generation_prompt)
    if render.marks_turns:
        text, found = _by_marks(render, messages, wanted, generation_prompt)
    else:
        text = render(messages, generation_prompt)
        finder = _Finder(render, messages, text, generation_prompt, special_pattern(tokenizer))
        found = [(index, finder.span(index)) for index in sorted(wanted)]
    filled = [(index, span) for index, span in found if span[0] < span[1]]
    if filled:  # where nothing is found, the mask will say so
        special = special_pattern(tokenizer)
        for index, span in found:
            if index is not None:
                _check_said(text, span, messages[index], special, last=index == len(messages) - 1)
        _check_context(text, messages)
    return text, [span for _, span in filled]


def ends_with_special(tokenizer: Any, text: str, span: Span) -> bool:
    """Whether a special token ends exactly where the span ends."""
    return _last_special(text, span, special_pattern(tokenizer)) == span[1]


def answer_of(content: str) -> str:
    """What follows the reasoning in a turn's content, without white space around it."""
    return content.rpartition(_END_OF_REASONING)[2].strip()


def _write_plainly(tokenizer: Any, messages: Messages, wanted: Collection[int]) -> tuple[str, list[Span]]:
    end = tokenizer.eos_token
    if end is None:
        raise UserError(
            "format", "plain text ends each answer with the tokenizer's eos token, and this tokenizer has none"
        )
    text = tokenizer.bos_token if adds_beginning(tokenizer) else ""
    spans = []
    for index, message in enumerate(messages):
        for part in ("tool_calls", "reasoning_content"):
            if message.get(part):
                raise UserError("format", f"plain text has no form for {part}; use a chat template that has")
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant":
            text += end
        if index in wanted:
            spans.append((start, len(text)))
    return text, spans


def _by_marks(
    render: Renderer, messages: Messages, wanted: Collection[int], generation_prompt: bool
) -> tuple[str, list[tuple[int | None, Span]]]:
    """The text, and what the template itself marks as generated, with the message it belongs to where that is plain."""
    text, marks = render.marked(messages, generation_prompt)
    if not generation_prompt and not marks:
        raise UserError("chat_template", f"its generation marks cover nothing of:\n{shown(text, [])}")
    special = special_pattern(render.tokenizer)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) == len(marks):
        pairs = [(index, mark) for index, mark in zip(turns, marks, strict=True) if index in wanted]
        return text, [(index, _trimmed(text, mark, messages[index], special)) for index, mark in pairs]
    if set(wanted) != set(turns):  # marks may leave turns out, or mark one twice
        raise UserError(
            "chat_template",
            f"it marks {len(marks)} stretches as generated for {len(turns)} turns of the assistant, so "
            f"that one cannot be told from another; the marked are between ⟦ and ⟧:\n{shown(text, marks)}",
        )
    return text, [(None, _trimmed(text, mark, None, special)) for mark in marks]


@dataclass(frozen=True)
class _Finder:
    """Finds turns in `text`, which is `render(messages, generation_prompt)`."""

    render: Renderer
    messages: Messages
    text: str
    generation_prompt: bool
    special: re.Pattern[str]

    def span(self, index: int) -> Span:
        """Where turn `index` is.

        Raises:
            UserError: it cannot be told.
        """
        last = index == len(self.messages) - 1
        before = self.render(self.messages[:index], True)
        upto = self.text if last else self.render(self.messages[: index + 1], False)
        if self.text.startswith(before) and upto.startswith(before):
            # Some templates add the end of the text behind the last turn only; the two may part after the turn's end.
            span = len(before), _common_end(upto, self.text, len(before))
            end = _find_end(self.text, span, self.messages[index], self.special)
            if end is not None or self.text.startswith(upto):
                return _trimmed(self.text, span, self.messages[index], self.special)
        if last:
            raise UserError(
                "chat_template",
                "what asks for the last answer is not what stands before it in training, so that the "
                "model would be asked something else than it has learnt to answer; use a template of your own.\n"
                f"Asked: {shown(before, [])}\nLearnt: {shown(self.text, [])}",
            )
        found = self._by_probe(index)
        if found is None:
            raise UserError(
                "chat_template",
                "it renders earlier turns differently once later ones follow, so the assistant's turn "
                f"{index} cannot be found; mark it with {{% generation %}} in a template of your own, or learn the "
                f"last turn only (`turns: last`).\nUp to the turn: {shown(before, [])}\nWith the turn: "
                f"{shown(upto, [])}\nThe whole: {shown(self.text, [])}",
            )
        return found

    def _by_probe(self, index: int) -> Span | None:
        """The turn between what asks for it and what ends it, each found behind a probe at the end of a message: of the
        one before, and of this one. None unless both appear exactly once and leave everything else as it is.
        """
        probe = "xqzprobe"
        while probe in self.text:
            probe += "q"
        places = []
        for at in (index - 1, index):
            changed = _with_probe(self.messages[at], probe)
            whole = self.render([*self.messages[:at], changed, *self.messages[at + 1 :]], self.generation_prompt)
            if whole.count(probe) != 1 or whole.replace(probe, "") != self.text:
                return None
            # What stands behind it when it is the last message: what asks for an answer, or what ends one.
            last = self.render([*self.messages[:at], changed], at < index)
            places.append((whole.index(probe), last.partition(probe)[2]))
        (asked_at, asking), (said_at, ending) = places
        if not self.text.startswith(asking, asked_at):
            return None
        stop = said_at + _common_end(ending, self.text[said_at:])
        token = self.special.search(self.text, said_at, stop)
        return asked_at + len(asking), said_at if token is None else token.end()


def _common_end(one: str, other: str, start: int = 0) -> int:
    """How far two texts are the same that are so up to `start`."""
    if other.startswith(one):  # nearly always, and the search below goes by the character
        return len(one)
    return start + len(os.path.commonprefix([one[start:], other[start:]]))  # noqa: RUF071 (by character)


def _with_probe(message: Mapping[str, Any], probe: str) -> dict[str, Any]:
    """The message with a probe behind the name of its last call, or else behind its content."""
    calls = list(message.get("tool_calls") or [])
    if calls:
        function = calls[-1]["function"]
        calls[-1] = {**calls[-1], "function": {**function, "name": function["name"] + probe}}
        return {**message, "tool_calls": calls}
    content = message["content"]
    rest = content.rstrip()  # which a template may trim
    return {**message, "content": rest + probe + content[len(rest) :]}


def _check_calls(render: Renderer, messages: Messages, index: int, generation_prompt: bool) -> None:
    """Refuse tool calls that the template leaves out, or with special tokens in them, from which the end of the turn
    could not be told."""
    message = messages[index]
    for call in message.get("tool_calls") or []:
        written = json.dumps(call["function"], ensure_ascii=False)
        if special_pattern(render.tokenizer).search(written):
            raise UserError("messages", f"expected no special token in a tool call, got {written[:200]}")
    if message.get("tool_calls"):
        probe = "xqzprobe"
        changed = _with_probe(message, probe)
        if probe not in render([*messages[:index], changed, *messages[index + 1 :]], generation_prompt):
            raise UserError(
                "chat_template",
                "it leaves out tool calls; use one that writes them. It gives:\n"
                f"{shown(render(messages, generation_prompt), [])}",
            )


def _check_context(text: str, messages: Messages) -> None:
    """Refuse a text that leaves out what the others say: the assistant would learn to answer what it has not read."""
    for index, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "assistant" or content in text:
            continue
        if json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            raise UserError(
                "chat_template",
                f"it leaves out or changes turn {index}, of {message['role']}, {content[:80]!r}; "
                f"it gives:\n{shown(text, [])}",
            )


def _check_said(text: str, span: Span, message: Mapping[str, Any], special: re.Pattern[str], *, last: bool) -> None:
    """Refuse a turn that leaves out what the assistant says. Only the reasoning of earlier turns may be left out."""
    said = text[span[0] : span[1]]
    bare = special.sub("\0", said)  # a function `f` is not called by `<eof>`
    for call in message.get("tool_calls") or []:
        for part in (call["function"]["name"], *call["function"]["arguments"]):
            if part not in bare and json.dumps(part, ensure_ascii=False)[1:-1] not in bare:
                raise UserError("chat_template", f"it leaves out part of a tool call, {part!r}:\n{shown(text, [span])}")
    wanted = [answer_of(message["content"])]
    if last:
        reasoning = message["content"].rpartition(_END_OF_REASONING)[0].partition("<think>")[2]
        wanted += [reasoning.strip(), message.get("reasoning_content", "").strip()]
    for part in wanted:
        if part not in said:
            raise UserError(
                "chat_template",
                f"it leaves out or changes part of what the assistant says, {part[:80]!r}; the turn is "
                f"between ⟦ and ⟧:\n{shown(text, [span])}",
            )


def _trimmed(text: str, span: Span, message: Mapping[str, Any] | None, special: re.Pattern[str]) -> Span:
    """`span` cut behind the special token that ends the turn: what comes after is not the model's to write.

    That token is the first after the turn's content (templates may add the end of the whole text or a line break), or,
    where the content cannot be found, the last that only white space follows. Without such a token the span stays.
    """
    start, end = span
    if message is not None and (last := _find_end(text, span, message, special)) is not None:
        return start, last
    last = _last_special(text, span, special)
    return (start, last) if last is not None and not text[last:end].strip() else span


def _find_end(text: str, span: Span, message: Mapping[str, Any], special: re.Pattern[str]) -> int | None:
    """Where the first special token after what a turn says ends. An answer `end` is not found inside `<|im_end|>`."""
    calls = message.get("tool_calls")
    said = calls[-1]["function"]["name"] if calls else answer_of(message["content"])
    start, end = span
    tokens = [(match.start(), match.end()) for match in special.finditer(text, start, end)]
    place = text.rfind(said, start, end) if said else -1
    while place >= 0:
        stop = place + len(said)
        if not any(first < place < last or first < stop < last for first, last in tokens):
            return next((last for first, last in tokens if first >= stop), None)
        place = text.rfind(said, start, stop - 1)
    return None


def _last_special(text: str, span: Span, special: re.Pattern[str]) -> int | None:
    """Where the last special token in the span ends."""
    end = None
    for match in special.finditer(text, *span):
        end = match.end()
    return end
